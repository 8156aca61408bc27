/* A 3x3 convolution from bf16 pictures to three colours in float32, and its gradients.

   Nothing is rounded but the gradient of the pictures. Colours and their gradients are [images height width 3]
   in float32, weights [3 3 3 channels]: row and column of the tap, colour. Widths are even. */

#include "lanes.h"

#define WEIGHT(tap, colour) (weight + ((tap) * 3 + (colour)) * p.channels + k)

static const bf16 *row_of(const bf16 *maps, long line, int tap, struct pictures p) {
    const long y = line % p.height + tap - 1;
    return y >= 0 && y < p.height ? maps + (line + tap - 1) * p.width * p.channels : 0;
}

/* Three rows of gradients around a line, each with a pixel of zeros at either end: [3][width + 2][3]. */
static void rows_around(const float *gradients, long line, float *rows, struct pictures p) {
    const long length = p.width * 3;
    for (int i = 0; i < 3; i++, rows += length + 6) {
        const long y = line % p.height + i - 1;
        memset(rows, 0, (length + 6) * sizeof(float));
        if (y >= 0 && y < p.height) memcpy(rows + 3, gradients + (line + i - 1) * length, length * sizeof(float));
    }
}

void colours(const bf16 *maps, const float *weight, const float *bias, float *to, struct pictures p, int threads) {
    const long c = p.channels;
#pragma omp parallel for num_threads(threads)
    for (long line = 0; line < p.images * p.height; line++) {
        for (long x = 0; x < p.width; x += 2) {
            lanes sum[2][3] = {{ZERO, ZERO, ZERO}, {ZERO, ZERO, ZERO}};
            for (int i = 0; i < 3; i++) {
                const bf16 *row = row_of(maps, line, i, p);
                if (!row) continue;
                const bf16 *pixel = row + x * c;
                for (long k = 0; k < c; k += LANES) {
                    const lanes seen[4] = {x > 0 ? load(pixel - c + k) : ZERO, load(pixel + k), load(pixel + c + k),
                                           x + 2 < p.width ? load(pixel + 2 * c + k) : ZERO};
                    for (int j = 0; j < 3; j++)
                        for (int colour = 0; colour < 3; colour++) {
                            const lanes w = _mm512_loadu_ps(WEIGHT(3 * i + j, colour));
                            sum[0][colour] = _mm512_fmadd_ps(seen[j], w, sum[0][colour]);
                            sum[1][colour] = _mm512_fmadd_ps(seen[j + 1], w, sum[1][colour]);
                        }
                }
            }
            for (int i = 0; i < 2; i++)
                for (int colour = 0; colour < 3; colour++)
                    to[(line * p.width + x + i) * 3 + colour] = _mm512_reduce_add_ps(sum[i][colour]) + bias[colour];
        }
    }
}

/* Gradient of the pictures. */
void colours_back(const float *gradients, const float *weight, bf16 *to, struct pictures p, int threads) {
    const long c = p.channels, length = (p.width + 2) * 3;
#pragma omp parallel for num_threads(threads)
    for (long line = 0; line < p.images * p.height; line++) {
        float rows[3 * length];
        rows_around(gradients, line, rows, p);
        for (long k = 0; k < c; k += LANES) {
            lanes w[27];
            for (int tap = 0; tap < 27; tap++) w[tap] = _mm512_loadu_ps(WEIGHT(tap / 3, tap % 3));
            for (long x = 0; x < p.width; x++) {
                lanes sum[3] = {ZERO, ZERO, ZERO};
                for (int i = 0; i < 3; i++)
                    for (int j = 0; j < 9; j++) {
                        const float g = rows[(2 - i) * length + (x + 2 - j / 3) * 3 + j % 3];
                        sum[i] = _mm512_fmadd_ps(_mm512_set1_ps(g), w[i * 9 + j], sum[i]);
                    }
                store(to + (line * p.width + x) * c + k, ADD(ADD(sum[0], sum[1]), sum[2]));
            }
        }
    }
}

/* Gradient of the weights, of each picture: [images 3 3 3 channels]. */
void colours_weights(const bf16 *maps, const float *gradients, float *to, struct pictures p, int threads) {
    const long c = p.channels, length = (p.width + 2) * 3, parts = c / LANES;
#pragma omp parallel for num_threads(threads)
    for (long part = 0; part < p.images * parts; part++) {
        const long image = part / parts, k = part % parts * LANES;
        float rows[3 * length];
        lanes sum[27];
        for (int tap = 0; tap < 27; tap++) sum[tap] = ZERO;
        for (long line = image * p.height; line < (image + 1) * p.height; line++) {
            rows_around(gradients, line, rows, p);
            for (long x = 0; x < p.width; x++) {
                const lanes seen = load(maps + (line * p.width + x) * c + k);
                for (int i = 0; i < 3; i++)
                    for (int j = 0; j < 9; j++) {
                        const float g = rows[(2 - i) * length + (x + 2 - j / 3) * 3 + j % 3];
                        sum[i * 9 + j] = _mm512_fmadd_ps(_mm512_set1_ps(g), seen, sum[i * 9 + j]);
                    }
            }
        }
        for (int tap = 0; tap < 27; tap++) _mm512_storeu_ps(to + (image * 27 + tap) * c + k, sum[tap]);
    }
}
