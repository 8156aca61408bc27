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
   of the kernels is a product over all tiles (`kernels_of`), for which `tiles_in` and `grads_in` (the adjoint of At)
   write planes.

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

/* The 4x4 pixels that a tile needs; none where they lie outside. */
struct window {
    const bf16 *pixel[4][4];
};

static inline struct window window_of(struct columns from, long tile, struct pictures p) {
    const long high = p.height / 2, wide = p.width / 2, line = tile / wide, column = tile % wide;
    struct window found;
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            const long y = line % high * 2 - 1 + i, x = column * 2 - 1 + j;
            const int inside = y >= 0 && y < p.height && x >= 0 && x < p.width;
            found.pixel[i][j] = inside ? from.at + ((line / high * p.height + y) * p.width + x) * from.row : 0;
        }
    return found;
}

/* Bt d B of some channels. */
static inline void cut(const struct window *w, long k, lanes places[16]) {
    lanes d[4][4];
    for (int i = 0; i < 4; i++) {
        lanes r[4];
        for (int j = 0; j < 4; j++) r[j] = w->pixel[i][j] ? load(w->pixel[i][j] + k) : ZERO;
        d[i][0] = SUB(r[0], r[2]);
        d[i][1] = ADD(r[1], r[2]);
        d[i][2] = SUB(r[2], r[1]);
        d[i][3] = SUB(r[1], r[3]);
    }
    for (int j = 0; j < 4; j++) {
        places[j] = SUB(d[0][j], d[2][j]);
        places[4 + j] = ADD(d[1][j], d[2][j]);
        places[8 + j] = SUB(d[2][j], d[1][j]);
        places[12 + j] = SUB(d[1][j], d[3][j]);
    }
}

/* A g At of some channels; of nothing where there is no tile. */
static inline void spread(const bf16 *upper, long below, long next, lanes places[16]) {
    for (int j = 0; j < 2; j++) {
        const lanes g0 = upper ? load(upper + j * next) : ZERO, g1 = upper ? load(upper + below + j * next) : ZERO;
        places[j] = g0;
        places[4 + j] = ADD(g0, g1);
        places[8 + j] = SUB(g0, g1);
        places[12 + j] = SUB(ZERO, g1);
    }
    for (int i = 0; i < 16; i += 4) {
        const lanes left = places[i], right = places[i + 1];
        places[i + 1] = ADD(left, right);
        places[i + 2] = SUB(left, right);
        places[i + 3] = SUB(ZERO, right);
    }
}

static const uint16_t IN_TURNS[2 * LANES] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                             8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};

/* The values of two, in turns. */
static inline void store_pairs(bf16 *to, lanes first, lanes second) {
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(second, first);
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(_mm512_loadu_si512(IN_TURNS), both));
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
            for (long t = 0; t < count; t++) {
                const struct window w = window_of(from, first + t, p);
                for (long i = 0; i < k; i += LANES) {
                    lanes places[16];
                    cut(&w, i, places);
                    for (int place = 0; place < 16; place++) store(planes + place * in + t * k + i, places[place]);
                }
            }
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

/* Planes of Bt d B, two tiles side by side: [16][(tiles + 1) / 2][channels][2]. */
void tiles_in(struct columns from, bf16 *to, struct pictures p, int threads) {
    const long tiles = tiles_of(p), twos = (tiles + 1) / 2, row = 2 * p.channels;
#pragma omp parallel for num_threads(threads)
    for (long two = 0; two < twos; two++) {
        struct window one = window_of(from, 2 * two, p), other = {0};
        if (2 * two + 1 < tiles) other = window_of(from, 2 * two + 1, p);
        for (long k = 0; k < p.channels; k += LANES) {
            lanes first[16], second[16];
            cut(&one, k, first);
            cut(&other, k, second);
            for (int place = 0; place < 16; place++)
                store_pairs(to + (place * twos + two) * row + 2 * k, first[place], second[place]);
        }
    }
}

/* Planes of A g At, likewise. */
void grads_in(struct columns from, bf16 *to, struct pictures p, int threads) {
    const long tiles = tiles_of(p), twos = (tiles + 1) / 2, row = 2 * p.channels;
#pragma omp parallel for num_threads(threads)
    for (long two = 0; two < twos; two++) {
        const bf16 *one = from.at + pixel_of(2 * two, p) * from.row;
        const bf16 *other = 2 * two + 1 < tiles ? from.at + pixel_of(2 * two + 1, p) * from.row : 0;
        for (long k = 0; k < p.channels; k += LANES) {
            lanes first[16], second[16];
            spread(one + k, p.width * from.row, from.row, first);
            spread(other ? other + k : 0, p.width * from.row, from.row, second);
            for (int place = 0; place < 16; place++)
                store_pairs(to + (place * twos + two) * row + 2 * k, first[place], second[place]);
        }
    }
}

/* Adds rows x 16 wide sums over all tiles of products of a gradient and a map. */
static inline __attribute__((always_inline)) void sums_of(const bf16 *grads, long grads_row, const bf16 *maps, long maps_row,
                                                          long twos, float *to, long n, const int rows, const int wide) {
    lanes sum[8][2];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < wide; j++) sum[i][j] = _mm512_loadu_ps(to + i * n + LANES * j);
    for (long two = 0; two < twos; two++, grads += grads_row, maps += maps_row) {
        pairs right[2];
        for (int j = 0; j < wide; j++) right[j] = (pairs)_mm512_loadu_si512(maps + 2 * LANES * j);
        for (int i = 0; i < rows; i++) {
            int both;
            memcpy(&both, grads + 2 * i, sizeof both);
            const pairs left = (pairs)_mm512_set1_epi32(both);
            for (int j = 0; j < wide; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], left, right[j]);
        }
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < wide; j++) _mm512_storeu_ps(to + i * n + LANES * j, sum[i][j]);
}

/* Adds to the gradients of kernels [16][outputs][inputs] those of some tiles; of each eight outputs only the first of the
   inputs are read, as `reads` says. */
void kernels_of(const bf16 *grads, const bf16 *maps, long twos, float *to, long outputs, long inputs, const long *reads,
                int threads) {
#pragma omp parallel for num_threads(threads)
    for (long place = 0; place < 16; place++) {
        const bf16 *left = grads + place * twos * 2 * outputs, *right = maps + place * twos * 2 * inputs;
        for (long output = 0; output < outputs; output += 8) {
            float *at = to + (place * outputs + output) * inputs;
            for (long input = 0, wide; input < reads[output / 8]; input += LANES * wide) {
                wide = reads[output / 8] - input >= 2 * LANES ? 2 : 1;
                const bf16 *these = right + 2 * input;
                if (wide == 2) sums_of(left + 2 * output, 2 * outputs, these, 2 * inputs, twos, at + input, inputs, 8, 2);
                else sums_of(left + 2 * output, 2 * outputs, these, 2 * inputs, twos, at + input, inputs, 8, 1);
            }
        }
    }
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
                bf16 *at = to + (place * outputs + output) * all + (first + input) * LANES;
                store_pairs(at, made[0][place], made[1][place]);
            }
        }
}

/* Adjoint of G g Gt, of planes [16][outputs][inputs], added to gradients [outputs][inputs][9] in float32. */
void kernels_back(const float *from, float *gradient, long outputs, long inputs, int threads) {
    const long plane = outputs * inputs;
    const lanes half = _mm512_set1_ps(0.5f);
#pragma omp parallel for num_threads(threads)
    for (long first = 0; first < plane; first += LANES) {
        float g[9][LANES];
        lanes r[3][4];
        const float *at = from + first;
        for (int j = 0; j < 4; j++, at += plane) {
            const lanes m1 = _mm512_loadu_ps(at + 4 * plane), m2 = _mm512_loadu_ps(at + 8 * plane);
            const lanes sum = _mm512_mul_ps(half, ADD(m1, m2));
            r[0][j] = ADD(_mm512_loadu_ps(at), sum);
            r[1][j] = _mm512_mul_ps(half, SUB(m1, m2));
            r[2][j] = ADD(_mm512_loadu_ps(at + 12 * plane), sum);
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
