/* Winograd's F(2x2, 3x3) for bf16 pictures, around the matrix products (Lavin & Gray, arXiv:1509.09308).

   A picture is cut into tiles: 2x2 pixels of the output need 4x4 of the input, which stand one pixel
   further up and left. In one dimension, for input d, kernel g and output y of a tile:

       y = At [(G g) * (Bt d)]       Bt = 1  0 -1  0     G = 1    0    0     At = 1  1  1  0
                                          0  1  1  0         1/2  1/2  1/2        0  1 -1 -1
                                          0 -1  1  0         1/2 -1/2  1/2
                                          0  1  0 -1         0    0    1

   and likewise down the columns. Here are Bt (tiles_in), At (tiles_out) and their adjoints for the gradients
   (grads_out, grads_in); the products in between are sixteen matrix products of [tiles inputs] and
   [inputs outputs], one for each place of the 4x4: a *plane*.

   The sides of pictures are even. Planes are [16][tiles + 1][row]; the row past the last tile is zero,
   because sixteen planes at a distance that is a multiple of 4 KiB would share the same few lines of the
   cache. Sums are in float32. */

#include "lanes.h"

static inline long tiles_of(struct pictures p) { return p.images * (p.height / 2) * (p.width / 2); }

/* Bt d B of pictures. */
void tiles_in(const bf16 *from, struct planes to, struct pictures p, int threads) {
    const long high = p.height / 2, wide = p.width / 2, tiles = tiles_of(p), c = p.channels;
    const long plane = (tiles + 1) * to.row;
#pragma omp parallel for num_threads(threads)
    for (long line = 0; line < p.images * high; line++) {
        for (long column = 0; column < wide; column++) {
            const bf16 *pixel[4][4];
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++) {
                    const long y = line % high * 2 - 1 + i, x = column * 2 - 1 + j;
                    const int inside = y >= 0 && y < p.height && x >= 0 && x < p.width;
                    pixel[i][j] = inside ? from + ((line / high * p.height + y) * p.width + x) * c : 0;
                }
            for (long k = 0; k < c; k += LANES) {
                lanes d[4][4];
                for (int i = 0; i < 4; i++) {
                    lanes r[4];
                    for (int j = 0; j < 4; j++) r[j] = pixel[i][j] ? load(pixel[i][j] + k) : ZERO;
                    d[i][0] = SUB(r[0], r[2]);
                    d[i][1] = ADD(r[1], r[2]);
                    d[i][2] = SUB(r[2], r[1]);
                    d[i][3] = SUB(r[1], r[3]);
                }
                bf16 *at = to.at + (line * wide + column) * to.row + k;
                for (int j = 0; j < 4; j++, at += plane) {
                    store(at, SUB(d[0][j], d[2][j]));
                    store(at + 4 * plane, ADD(d[1][j], d[2][j]));
                    store(at + 8 * plane, SUB(d[2][j], d[1][j]));
                    store(at + 12 * plane, SUB(d[1][j], d[3][j]));
                }
            }
        }
    }
    end_with_zeros(to, 16, tiles, c);
}

/* At m A of planes with as many columns as there are channels, plus bias (or none), through LeakyReLU. */
void tiles_out(const bf16 *from, const float *bias, float slope, bf16 *to, struct pictures p, int threads) {
    const long high = p.height / 2, wide = p.width / 2, c = p.channels, plane = (tiles_of(p) + 1) * c;
    const lanes slopes = _mm512_set1_ps(slope);
#pragma omp parallel for num_threads(threads)
    for (long line = 0; line < p.images * high; line++) {
        for (long column = 0; column < wide; column++) {
            bf16 *pixel = to + (line * 2 * p.width + column * 2) * c;
            for (long k = 0; k < c; k += LANES) {
                const bf16 *at = from + (line * wide + column) * c + k;
                const lanes base = bias ? _mm512_loadu_ps(bias + k) : ZERO;
                lanes m[4][2];
                for (int i = 0; i < 4; i++) {
                    lanes r[4];
                    for (int j = 0; j < 4; j++) r[j] = load(at + (4 * i + j) * plane);
                    m[i][0] = ADD(ADD(r[0], r[1]), r[2]);
                    m[i][1] = SUB(SUB(r[1], r[2]), r[3]);
                }
                for (int j = 0; j < 2; j++) {
                    const lanes upper = ADD(ADD(ADD(m[0][j], m[1][j]), m[2][j]), base);
                    const lanes lower = ADD(SUB(SUB(m[1][j], m[2][j]), m[3][j]), base);
                    store(pixel + j * c + k, leaky(upper, upper, slopes));
                    store(pixel + (p.width + j) * c + k, leaky(lower, lower, slopes));
                }
            }
        }
    }
}

/* A g At of one tile of gradients. */
static inline void spread(const lanes g[2][2], bf16 *to, long plane) {
    lanes m[4][2];
    for (int j = 0; j < 2; j++) {
        m[0][j] = g[0][j];
        m[1][j] = ADD(g[0][j], g[1][j]);
        m[2][j] = SUB(g[0][j], g[1][j]);
        m[3][j] = SUB(ZERO, g[1][j]);
    }
    for (int i = 0; i < 4; i++, to += 4 * plane) {
        store(to, m[i][0]);
        store(to + plane, ADD(m[i][0], m[i][1]));
        store(to + 2 * plane, SUB(m[i][0], m[i][1]));
        store(to + 3 * plane, SUB(ZERO, m[i][1]));
    }
}

/* Adjoint of tiles_out, for gradients of the pictures `seen` that it made. */
void grads_in(const bf16 *from, const bf16 *seen, float slope, struct planes to, struct pictures p, int threads) {
    const long high = p.height / 2, wide = p.width / 2, tiles = tiles_of(p), c = p.channels;
    const lanes slopes = _mm512_set1_ps(slope);
#pragma omp parallel for num_threads(threads)
    for (long line = 0; line < p.images * high; line++) {
        for (long column = 0; column < wide; column++) {
            const long pixel = (line * 2 * p.width + column * 2) * c;
            for (long k = 0; k < c; k += LANES) {
                lanes g[2][2];
                for (int i = 0; i < 2; i++)
                    for (int j = 0; j < 2; j++) {
                        const long at = pixel + (i * p.width + j) * c + k;
                        g[i][j] = load(from + at);
                        if (slope != 1) g[i][j] = leaky(g[i][j], load(seen + at), slopes);
                    }
                spread(g, to.at + (line * wide + column) * to.row + k, (tiles + 1) * to.row);
            }
        }
    }
    end_with_zeros(to, 16, tiles, c);
}

/* Adjoint of tiles_in: B v Bt of planes, each pixel the sum over the tiles that see it.

   Into the pictures `to`; or on through the LeakyReLU that made the pictures `seen`, and into the planes
   `next`. Within a tile its four places give g = B v; at its ends come v3 of the tile
   before and v0 of the one behind. */
static inline void backward(const bf16 *from, bf16 *to, const bf16 *seen, float slope, struct planes next,
                            struct pictures p, int threads) {
    const long high = p.height / 2, wide = p.width / 2, tiles = tiles_of(p), c = p.channels, plane = (tiles + 1) * c;
    const lanes slopes = _mm512_set1_ps(slope);
#pragma omp parallel for num_threads(threads)
    for (long line = 0; line < p.images * high; line++) {
        const int first = line % high == 0, last = line % high == high - 1;
        for (long column = 0; column < wide; column++) {
            const long tile = line * wide + column, pixel = (line * 2 * p.width + column * 2) * c;
            for (long k = 0; k < c; k += LANES) {
                lanes r[6][2];
                for (int i = 0; i < 6; i++) {
                    const bf16 *at = from + tile * c + k;
                    if (i == 0) at += 12 * plane - wide * c;
                    else if (i == 5) at += wide * c;
                    else at += 4 * (i - 1) * plane;
                    if ((i == 0 && first) || (i == 5 && last)) {
                        r[i][0] = r[i][1] = ZERO;
                        continue;
                    }
                    const lanes v0 = load(at), v1 = load(at + plane), v2 = load(at + 2 * plane), v3 = load(at + 3 * plane);
                    const lanes before = column > 0 ? load(at + 3 * plane - c) : ZERO;
                    const lanes behind = column < wide - 1 ? load(at + c) : ZERO;
                    r[i][0] = SUB(ADD(SUB(v1, v2), v3), before);
                    r[i][1] = ADD(SUB(ADD(v1, v2), v0), behind);
                }
                lanes g[2][2];
                for (int j = 0; j < 2; j++) {
                    g[0][j] = SUB(ADD(SUB(r[2][j], r[3][j]), r[4][j]), r[0][j]);
                    g[1][j] = ADD(SUB(ADD(r[2][j], r[3][j]), r[1][j]), r[5][j]);
                }
                for (int i = 0; i < 2; i++)
                    for (int j = 0; j < 2; j++) {
                        const long at = pixel + (i * p.width + j) * c + k;
                        if (to) store(to + at, g[i][j]);
                        else g[i][j] = leaky(g[i][j], load(seen + at), slopes);
                    }
                if (!to) spread(g, next.at + tile * next.row + k, (tiles + 1) * next.row);
            }
        }
    }
    if (!to) end_with_zeros(next, 16, tiles, c);
}

void grads_out(const bf16 *from, bf16 *to, struct pictures p, int threads) {
    backward(from, to, 0, 1, (struct planes){0, 0}, p, threads);
}

void grads_through(const bf16 *from, const bf16 *seen, float slope, struct planes next, struct pictures p, int threads) {
    backward(from, 0, seen, slope, next, p, threads);
}

/* G g Gt of kernels [outputs inputs 3 3] in float32. */
void kernels_in(const float *weight, bf16 *to, long outputs, long inputs, int threads) {
    const long plane = outputs * inputs;
    const lanes half = _mm512_set1_ps(0.5f);
#pragma omp parallel for num_threads(threads)
    for (long first = 0; first < plane; first += LANES) {
        float g[9][LANES];
        for (int lane = 0; lane < LANES; lane++)
            for (int tap = 0; tap < 9; tap++) g[tap][lane] = weight[(first + lane) * 9 + tap];
        lanes r[3][4];
        for (int i = 0; i < 3; i++) {
            const lanes left = _mm512_loadu_ps(g[3 * i]), right = _mm512_loadu_ps(g[3 * i + 2]);
            const lanes ends = ADD(left, right), middle = _mm512_loadu_ps(g[3 * i + 1]);
            r[i][0] = left;
            r[i][1] = _mm512_mul_ps(half, ADD(ends, middle));
            r[i][2] = _mm512_mul_ps(half, SUB(ends, middle));
            r[i][3] = right;
        }
        bf16 *at = to + first;
        for (int j = 0; j < 4; j++, at += plane) {
            const lanes ends = ADD(r[0][j], r[2][j]);
            store(at, r[0][j]);
            store(at + 4 * plane, _mm512_mul_ps(half, ADD(ends, r[1][j])));
            store(at + 8 * plane, _mm512_mul_ps(half, SUB(ends, r[1][j])));
            store(at + 12 * plane, r[2][j]);
        }
    }
}

/* Adjoint of kernels_in, added to gradients in float32. */
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
