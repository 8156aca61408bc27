/* Winograd's F(2x2, 2x2) for 4x4 convolutions of stride 2 that halve a picture: `tiles_3x3.c` for another shape.

   Two pixels of the output are sums over six of the input, x[-1] to x[4], of which each kernel tap sees every
   other one. The even and the odd ones are two *phases* with two taps each, and for a phase with
   input d0 d1 d2 and taps g0 g1

       y0 = (d0 - d1) g0 + d1 (g0 + g1)        y1 = d1 (g0 + g1) + (d2 - d1) g1

   has three products where the sums have four. In two dimensions that is nine planes, in which the columns of
   the inputs are [2 2 channels]: phase down, phase across. Sides are multiples of 4. */

#include "lanes.h"

#define INDEX(p, line, y, x) (((line) / ((p).height / 4) * (p).height + (y)) * (p).width + (x))

static inline long tiles_of(struct pictures p) { return p.images * (p.height / 4) * (p.width / 4); }

/* Place `at` of 0, 1, 2 for the phase that begins at `of`. */
static inline lanes place(const lanes *of, int at, int step) {
    return at == 1 ? of[step] : SUB(of[at * step], of[step]);
}

void tiles_in(struct columns from, struct columns to, struct pictures p, int threads) {
    const long high = p.height / 4, wide = p.width / 4, tiles = tiles_of(p), c = p.channels;
    const long plane = (tiles + 1) * to.row;
#pragma omp parallel for num_threads(threads)
    for (long line = 0; line < p.images * high; line++) {
        for (long column = 0; column < wide; column++) {
            const bf16 *pixel[6][6];
            for (int i = 0; i < 6; i++)
                for (int j = 0; j < 6; j++) {
                    const long y = line % high * 4 - 1 + i, x = column * 4 - 1 + j;
                    const int inside = y >= 0 && y < p.height && x >= 0 && x < p.width;
                    pixel[i][j] = inside ? from.at + INDEX(p, line, y, x) * from.row : 0;
                }
            for (long k = 0; k < c; k += LANES)
                for (int across = 0; across < 2; across++)
                    for (int j = 0; j < 3; j++) {
                        lanes d[6];
                        for (int i = 0; i < 6; i++) {
                            const bf16 *middle = pixel[i][across + 2], *other = pixel[i][across + 2 * j];
                            d[i] = middle ? load(middle + k) : ZERO;
                            if (j != 1) d[i] = SUB(other ? load(other + k) : ZERO, d[i]);
                        }
                        bf16 *at = to.at + j * plane + (line * wide + column) * to.row + across * c + k;
                        for (int i = 0; i < 3; i++)
                            for (int down = 0; down < 2; down++)
                                store(at + 3 * i * plane + 2 * down * c, place(d + down, i, 2));
                    }
        }
    }
    end_with_zeros(to, 9, tiles, 4 * c);
}

/* Pictures p are those of the output here, so sides are multiples of 2. */
void tiles_out(const bf16 *from, const float *bias, float slope, bf16 *to, struct pictures p, int threads) {
    const long high = p.height / 2, wide = p.width / 2, c = p.channels, plane = (p.images * high * wide + 1) * c;
    const lanes slopes = _mm512_set1_ps(slope);
#pragma omp parallel for num_threads(threads)
    for (long line = 0; line < p.images * high; line++) {
        for (long column = 0; column < wide; column++) {
            bf16 *pixel = to + (line * 2 * p.width + column * 2) * c;
            for (long k = 0; k < c; k += LANES) {
                const bf16 *at = from + (line * wide + column) * c + k;
                const lanes base = bias ? _mm512_loadu_ps(bias + k) : ZERO;
                lanes m[3][2];
                for (int i = 0; i < 3; i++, at += 3 * plane) {
                    const lanes middle = load(at + plane);
                    m[i][0] = ADD(load(at), middle);
                    m[i][1] = ADD(middle, load(at + 2 * plane));
                }
                for (int i = 0; i < 2; i++)
                    for (int j = 0; j < 2; j++) {
                        const lanes sum = ADD(ADD(m[i][j], m[i + 1][j]), base);
                        store(pixel + (i * p.width + j) * c + k, leaky(sum, sum, slopes));
                    }
            }
        }
    }
}

/* Adjoint of tiles_out but for its LeakyReLU. */
void grads_in(struct columns from, struct columns to, struct pictures p, int threads) {
    const long high = p.height / 2, wide = p.width / 2, tiles = p.images * high * wide, c = p.channels;
    const long plane = (tiles + 1) * to.row;
#pragma omp parallel for num_threads(threads)
    for (long line = 0; line < p.images * high; line++) {
        for (long column = 0; column < wide; column++) {
            const bf16 *pixel = from.at + (line * 2 * p.width + column * 2) * from.row;
            for (long k = 0; k < c; k += LANES) {
                lanes g[2][2];
                for (int i = 0; i < 2; i++)
                    for (int j = 0; j < 2; j++) g[i][j] = load(pixel + (i * p.width + j) * from.row + k);
                bf16 *at = to.at + (line * wide + column) * to.row + k;
                for (int i = 0; i < 3; i++, at += 3 * plane) {
                    const lanes left = i == 1 ? ADD(g[0][0], g[1][0]) : g[i / 2][0];
                    const lanes right = i == 1 ? ADD(g[0][1], g[1][1]) : g[i / 2][1];
                    store(at, left);
                    store(at + plane, ADD(left, right));
                    store(at + 2 * plane, right);
                }
            }
        }
    }
    end_with_zeros(to, 9, tiles, c);
}

/* Distances in planes: to the next place and the next phase down a column, and to the line of tiles below. */
struct steps {
    long place, phase, line;
};

/* What one place across gives the pixels in row i of a tile; its first row is also the last of the tile
   above, and so is its last. */
static inline lanes down(const bf16 *at, int i, struct steps s, int first, int last) {
    if (i == 0) return ADD(load(at + s.phase), first ? ZERO : load(at + s.phase + 2 * s.place - s.line));
    if (i == 3) return ADD(load(at + 2 * s.place), last ? ZERO : load(at + s.line));
    if (i == 2) at += s.phase;
    return SUB(SUB(load(at + s.place), load(at)), load(at + 2 * s.place));
}

/* Adjoint of tiles_in. */
void grads_out(const bf16 *from, bf16 *to, struct pictures p, int threads) {
    const long high = p.height / 4, wide = p.width / 4, c = p.channels, row = 4 * c;
    const long plane = (tiles_of(p) + 1) * row;
    const struct steps steps = {3 * plane, 2 * c, wide * row};
#pragma omp parallel for num_threads(threads)
    for (long line = 0; line < p.images * high; line++) {
        const int first = line % high == 0, last = line % high == high - 1;
        for (long column = 0; column < wide; column++) {
            for (long k = 0; k < c; k += LANES) {
                const bf16 *at = from + (line * wide + column) * row + k;
                for (int i = 0; i < 4; i++) {
#define DOWN(offset) down(at + (offset), i, steps, first, last)
                    bf16 *pixel = to + INDEX(p, line, line % high * 4 + i, column * 4) * c + k;
                    const lanes even[3] = {DOWN(0), DOWN(plane), DOWN(2 * plane)};
                    const lanes odd[3] = {DOWN(c), DOWN(c + plane), DOWN(c + 2 * plane)};
                    const lanes before = column > 0 ? DOWN(c + 2 * plane - row) : ZERO;
                    const lanes behind = column < wide - 1 ? DOWN(row) : ZERO;
                    store(pixel, ADD(odd[0], before));
                    store(pixel + c, SUB(SUB(even[1], even[0]), even[2]));
                    store(pixel + 2 * c, SUB(SUB(odd[1], odd[0]), odd[2]));
                    store(pixel + 3 * c, ADD(even[2], behind));
#undef DOWN
                }
            }
        }
    }
}

/* Kernels [outputs inputs 4 4] in float32 as planes [9][outputs][2 2 inputs]. */
void kernels_in(const float *weight, bf16 *to, long outputs, long inputs, int threads) {
    const long plane = outputs * 4 * inputs;
#pragma omp parallel for num_threads(threads)
    for (long output = 0; output < outputs; output++)
        for (long k = 0; k < inputs; k += LANES) {
            float g[16][LANES];
            for (int lane = 0; lane < LANES; lane++)
                for (int tap = 0; tap < 16; tap++) g[tap][lane] = weight[(output * inputs + k + lane) * 16 + tap];
            for (int phase = 0; phase < 4; phase++) {
                const int start = phase / 2 * 4 + phase % 2;
                bf16 *at = to + (output * 4 + phase) * inputs + k;
                lanes r[2][3];
                for (int i = 0; i < 2; i++) {
                    r[i][0] = _mm512_loadu_ps(g[start + 8 * i]);
                    r[i][2] = _mm512_loadu_ps(g[start + 8 * i + 2]);
                    r[i][1] = ADD(r[i][0], r[i][2]);
                }
                for (int j = 0; j < 3; j++, at += plane) {
                    store(at, r[0][j]);
                    store(at + 3 * plane, ADD(r[0][j], r[1][j]));
                    store(at + 6 * plane, r[1][j]);
                }
            }
        }
}

/* Adjoint of kernels_in, added to gradients [outputs][inputs][16] in float32. */
void kernels_back(const bf16 *from, float *gradient, long outputs, long inputs, int threads) {
    const long plane = outputs * 4 * inputs;
#pragma omp parallel for num_threads(threads)
    for (long output = 0; output < outputs; output++)
        for (long k = 0; k < inputs; k += LANES) {
            float g[16][LANES];
            for (int phase = 0; phase < 4; phase++) {
                const int start = phase / 2 * 4 + phase % 2;
                const bf16 *at = from + (output * 4 + phase) * inputs + k;
                lanes r[2][3];
                for (int j = 0; j < 3; j++, at += plane) {
                    const lanes middle = load(at + 3 * plane);
                    r[0][j] = ADD(load(at), middle);
                    r[1][j] = ADD(load(at + 6 * plane), middle);
                }
                for (int i = 0; i < 2; i++) {
                    _mm512_storeu_ps(g[start + 8 * i], ADD(r[i][0], r[i][1]));
                    _mm512_storeu_ps(g[start + 8 * i + 2], ADD(r[i][1], r[i][2]));
                }
            }
            for (int lane = 0; lane < LANES; lane++)
                for (int tap = 0; tap < 16; tap++) gradient[(output * inputs + k + lane) * 16 + tap] += g[tap][lane];
        }
}
