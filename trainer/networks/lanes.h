/* What the kernels of this folder share: pictures in bf16, sixteen channels at once in float32.

   The last arguments of each are the shape of the pictures and how many threads to use. */

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;
typedef __m512 lanes;
#define LANES 16
#define ADD _mm512_add_ps
#define SUB _mm512_sub_ps
#define ZERO _mm512_setzero_ps()

/* [images height width channels], channels a multiple of 16. */
struct pictures {
    long images, height, width, channels;
};

/* Some columns of a matrix, as channels of pixels or of tiles: the first of them in the first row, and how many a
   row has in all. */
struct columns {
    bf16 *at;
    long row;
};

static inline lanes load(const bf16 *from) {
    const __m256i halves = _mm256_loadu_si256((const __m256i *)from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

static inline void store(bf16 *to, lanes value) {
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(value));
}

static inline lanes leaky(lanes value, lanes sign, lanes slope) {
    return _mm512_mask_mul_ps(value, _mm512_cmp_ps_mask(sign, ZERO, _CMP_LE_OQ), value, slope);
}

/* The row past the last tile. */
static inline void end_with_zeros(struct columns to, int places, long tiles, long columns) {
    for (long place = 0; place < places; place++)
        memset(to.at + (place * (tiles + 1) + tiles) * to.row, 0, columns * sizeof(bf16));
}
