/* Winograd's F(2x2, 3x3) for bf16 pictures (Lavin & Gray, arXiv:1509.09308).

   A picture is cut into tiles: 2x2 pixels of the output need 4x4 of the input, which stand one pixel
   further up and left. In one dimension, for input d, kernel g and output y of a tile:

       y = At [(G g) * (Bt d)]       Bt = 1  0 -1  0     G = 1    0    0     At = 1  1  1  0
                                          0  1  1  0         1/2  1/2  1/2        0  1 -1 -1
                                          0 -1  1  0         1/2 -1/2  1/2
                                          0  1  0 -1         0    0    1

   and likewise down the columns; the products in between are sixteen matrix products of [tiles inputs] and
   [inputs outputs], one for each place of the 4x4: a *plane*.

   `convolve` does all of it for some tiles at a time, whose planes stay in the cache. The gradient of the input is
   such a convolution, too: of the output's gradient, with kernels turned by 180 degrees, inputs for outputs. That
   of the kernels is a product over all tiles, for which `tiles_in` and `grads_in` (the adjoint of At) write planes.

   Sides of pictures are even. Sums are in float32; what a product reads is bf16. */

#include <stdlib.h>

#include "lanes.h"

#define TILES 48 /* at a time; a multiple of ROWS */
#define ROWS 12

typedef __m512bh pairs;

static inline long tiles_of(struct pictures p) { return p.images * (p.height / 2) * (p.width / 2); }

/* The first of the 2x2 pixels of a tile. */
static inline long pixel_of(long tile, struct pictures p) {
    const long wide = p.width / 2;
    return tile / wide * 2 * p.width + tile % wide * 2;
}

/* Bt d B of a tile, into places at a distance. */
static inline void cut(struct columns from, long tile, bf16 *to, long distance, struct pictures p) {
    const long high = p.height / 2, wide = p.width / 2, line = tile / wide, column = tile % wide;
    const bf16 *pixel[4][4];
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            const long y = line % high * 2 - 1 + i, x = column * 2 - 1 + j;
            const int inside = y >= 0 && y < p.height && x >= 0 && x < p.width;
            pixel[i][j] = inside ? from.at + ((line / high * p.height + y) * p.width + x) * from.row : 0;
        }
    for (long k = 0; k < p.channels; k += LANES) {
        lanes d[4][4];
        for (int i = 0; i < 4; i++) {
            lanes r[4];
            for (int j = 0; j < 4; j++) r[j] = pixel[i][j] ? load(pixel[i][j] + k) : ZERO;
            d[i][0] = SUB(r[0], r[2]);
            d[i][1] = ADD(r[1], r[2]);
            d[i][2] = SUB(r[2], r[1]);
            d[i][3] = SUB(r[1], r[3]);
        }
        bf16 *at = to + k;
        for (int j = 0; j < 4; j++, at += distance) {
            store(at, SUB(d[0][j], d[2][j]));
            store(at + 4 * distance, ADD(d[1][j], d[2][j]));
            store(at + 8 * distance, SUB(d[2][j], d[1][j]));
            store(at + 12 * distance, SUB(d[1][j], d[3][j]));
        }
    }
}

/* rows x 16 wide products of a [rows][k] and b [wide][k / 2][16][2]. */
static inline __attribute__((always_inline)) void block(const bf16 *a, const bf16 *b, long k, float *to, long n,
                                                        const int rows, const int wide) {
    lanes sum[ROWS][4];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < wide; j++) sum[i][j] = ZERO;
    for (long pair = 0; pair < k; pair += 2) {
        pairs right[4];
        for (int j = 0; j < wide; j++) right[j] = (pairs)_mm512_loadu_si512(b + (j * k + pair) * LANES);
        for (int i = 0; i < rows; i++) {
            int both;
            memcpy(&both, a + i * k + pair, sizeof both);
            const pairs left = (pairs)_mm512_set1_epi32(both);
            for (int j = 0; j < wide; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], left, right[j]);
        }
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < wide; j++) _mm512_storeu_ps(to + i * n + LANES * j, sum[i][j]);
}

/* a [rows][k] times b [n / 16][k / 2][16][2]; rows a multiple of ROWS. As many sums at once as there are registers. */
static void product(const bf16 *a, const bf16 *b, float *to, long rows, long k, long n) {
    for (long column = 0, wide; column < n; column += LANES * wide) {
        const long left = (n - column) / LANES;
        wide = left >= 4 ? 4 : left >= 2 ? 2 : 1;
        const bf16 *right = b + column * k;
        for (long i = 0; i < rows; i += wide == 4 ? ROWS / 2 : ROWS) {
            if (wide == 4) block(a + i * k, right, k, to + i * n + column, n, ROWS / 2, 4);
            else if (wide == 2) block(a + i * k, right, k, to + i * n + column, n, ROWS, 2);
            else block(a + i * k, right, k, to + i * n + column, n, ROWS, 1);
        }
    }
}

/* At m A of a tile's places, plus bias (or none), through a LeakyReLU by the sign of `seen`, or of itself. */
static inline void join(const float *from, long distance, const float *bias, struct columns seen, lanes slope,
                        struct columns to, long n, long pixel, struct pictures p) {
    for (long k = 0; k < n; k += LANES) {
        const lanes base = bias ? _mm512_loadu_ps(bias + k) : ZERO;
        lanes m[4][2];
        for (int i = 0; i < 4; i++) {
            lanes r[4];
            for (int j = 0; j < 4; j++) r[j] = _mm512_loadu_ps(from + (4 * i + j) * distance + k);
            m[i][0] = ADD(ADD(r[0], r[1]), r[2]);
            m[i][1] = SUB(SUB(r[1], r[2]), r[3]);
        }
        for (int j = 0; j < 2; j++) {
            const lanes sums[2] = {ADD(ADD(ADD(m[0][j], m[1][j]), m[2][j]), base),
                                   ADD(SUB(SUB(m[1][j], m[2][j]), m[3][j]), base)};
            for (int i = 0; i < 2; i++) {
                const long at = pixel + i * p.width + j;
                const lanes sign = seen.at ? load(seen.at + at * seen.row + k) : sums[i];
                store(to.at + at * to.row + k, leaky(sums[i], sign, slope));
            }
        }
    }
}

/* A convolution from p.channels to `outputs` channels. Returns 1 if there is no memory for it. */
int convolve(struct columns from, const bf16 *kernels, const float *bias, struct columns seen, float slope,
             struct columns to, long outputs, struct pictures p, int threads) {
    const long tiles = tiles_of(p), k = p.channels, share = (tiles + threads - 1) / threads;
    const long most = share < TILES ? (share + ROWS - 1) / ROWS * ROWS : TILES;
    const long in = most * k + 2 * LANES, out = most * outputs + LANES; /* no distance of 4 KiB */
    const lanes slopes = _mm512_set1_ps(slope);
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        bf16 *planes = aligned_alloc(64, 16 * in * sizeof(bf16));
        float *sums = aligned_alloc(64, 16 * out * sizeof(float));
        if (!planes || !sums) failed = 1;
#pragma omp barrier
#pragma omp for schedule(static)
        for (long first = 0; first < tiles; first += most) {
            if (failed) continue;
            const long count = tiles - first < most ? tiles - first : most;
            const long rows = (count + ROWS - 1) / ROWS * ROWS; /* the last ones are never looked at */
            for (long t = 0; t < count; t++) cut(from, first + t, planes + t * k, in, p);
            for (int place = 0; place < 16; place++)
                product(planes + place * in, kernels + place * k * outputs, sums + place * out, rows, k, outputs);
            for (long t = 0; t < count; t++)
                join(sums + t * outputs, out, bias, seen, slopes, to, outputs, pixel_of(first + t, p), p);
        }
        free(planes);
        free(sums);
    }
    return failed;
}

/* Planes of Bt d B: [16][tiles + 1][row]. */
void tiles_in(struct columns from, struct columns to, struct pictures p, int threads) {
    const long tiles = tiles_of(p);
#pragma omp parallel for num_threads(threads)
    for (long tile = 0; tile < tiles; tile++) cut(from, tile, to.at + tile * to.row, (tiles + 1) * to.row, p);
    end_with_zeros(to, 16, tiles, p.channels);
}

/* Planes of A g At. */
void grads_in(struct columns from, struct columns to, struct pictures p, int threads) {
    const long tiles = tiles_of(p), plane = (tiles + 1) * to.row;
#pragma omp parallel for num_threads(threads)
    for (long tile = 0; tile < tiles; tile++) {
        const bf16 *upper = from.at + pixel_of(tile, p) * from.row, *lower = upper + p.width * from.row;
        for (long k = 0; k < p.channels; k += LANES) {
            lanes m[4][2];
            for (int j = 0; j < 2; j++) {
                const lanes g0 = load(upper + j * from.row + k), g1 = load(lower + j * from.row + k);
                m[0][j] = g0;
                m[1][j] = ADD(g0, g1);
                m[2][j] = SUB(g0, g1);
                m[3][j] = SUB(ZERO, g1);
            }
            bf16 *at = to.at + tile * to.row + k;
            for (int i = 0; i < 4; i++, at += 4 * plane) {
                store(at, m[i][0]);
                store(at + plane, ADD(m[i][0], m[i][1]));
                store(at + 2 * plane, SUB(m[i][0], m[i][1]));
                store(at + 3 * plane, SUB(ZERO, m[i][1]));
            }
        }
    }
    end_with_zeros(to, 16, tiles, p.channels);
}

/* Where the 3x3 taps of an output and an input are, and whether to turn them by 180 degrees. */
struct weights {
    const float *at;
    long output, input;
    int turned;
};

/* G g Gt of kernels as `convolve` wants them: [16][outputs / 16][inputs / 2][16][2], of which these are the inputs from
   `first` on, of `all`. */
void kernels_in(struct weights from, bf16 *to, long outputs, long inputs, long first, long all, int threads) {
    const lanes half = _mm512_set1_ps(0.5f);
    short order[32];
    for (int i = 0; i < 32; i++) order[i] = i / 2 + i % 2 * 16;
    const __m512i side_by_side = _mm512_loadu_si512(order);
#pragma omp parallel for num_threads(threads)
    for (long output = 0; output < outputs; output += LANES)
        for (long input = 0; input < inputs; input += 2) {
            lanes made[2][16];
            for (int s = 0; s < 2; s++) {
                float g[9][LANES];
                for (int lane = 0; lane < LANES; lane++) {
                    const float *taps = from.at + (output + lane) * from.output + (input + s) * from.input;
                    for (int tap = 0; tap < 9; tap++) g[tap][lane] = taps[from.turned ? 8 - tap : tap];
                }
                lanes r[3][4];
                for (int i = 0; i < 3; i++) {
                    const lanes left = _mm512_loadu_ps(g[3 * i]), right = _mm512_loadu_ps(g[3 * i + 2]);
                    const lanes ends = ADD(left, right), middle = _mm512_loadu_ps(g[3 * i + 1]);
                    r[i][0] = left;
                    r[i][1] = _mm512_mul_ps(half, ADD(ends, middle));
                    r[i][2] = _mm512_mul_ps(half, SUB(ends, middle));
                    r[i][3] = right;
                }
                for (int j = 0; j < 4; j++) {
                    const lanes ends = ADD(r[0][j], r[2][j]);
                    made[s][j] = r[0][j];
                    made[s][4 + j] = _mm512_mul_ps(half, ADD(ends, r[1][j]));
                    made[s][8 + j] = _mm512_mul_ps(half, SUB(ends, r[1][j]));
                    made[s][12 + j] = r[2][j];
                }
            }
            for (int place = 0; place < 16; place++) {
                const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(made[1][place], made[0][place]);
                bf16 *at = to + (place * outputs + output) * all + (first + input) * LANES;
                _mm512_storeu_si512(at, _mm512_permutexvar_epi16(side_by_side, both));
            }
        }
}

/* Adjoint of G g Gt, of planes [16][outputs][inputs], added to gradients [outputs][inputs][9] in float32. */
void kernels_back(const bf16 *from, float *gradient, long outputs, long inputs, int threads) {
    const long plane = outputs * inputs;
    const lanes half = _mm512_set1_ps(0.5f);
#pragma omp parallel for num_threads(threads)
    for (long first = 0; first < plane; first += LANES) {
        float g[9][LANES];
        lanes r[3][4];
        const bf16 *at = from + first;
        for (int j = 0; j < 4; j++, at += plane) {
            const lanes m1 = load(at + 4 * plane), m2 = load(at + 8 * plane);
            const lanes sum = _mm512_mul_ps(half, ADD(m1, m2));
            r[0][j] = ADD(load(at), sum);
            r[1][j] = _mm512_mul_ps(half, SUB(m1, m2));
            r[2][j] = ADD(load(at + 12 * plane), sum);
        }
        for (int i = 0; i < 3; i++) {
            const lanes sum = _mm512_mul_ps(half, ADD(r[i][1], r[i][2]));
            _mm512_storeu_ps(g[3 * i], ADD(r[i][0], sum));
            _mm512_storeu_ps(g[3 * i + 1], _mm512_mul_ps(half, SUB(r[i][1], r[i][2])));
            _mm512_storeu_ps(g[3 * i + 2], ADD(r[i][3], sum));
        }
        for (int lane = 0; lane < LANES; lane++)
            for (int tap = 0; tap < 9; tap++) gradient[(first + lane) * 9 + tap] += g[tap][lane];
    }
}
