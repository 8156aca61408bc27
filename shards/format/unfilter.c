/* Inverse PNG filters for pixels of three bytes: https://www.w3.org/TR/png-3/#9Filter-types.
 *
 * A row is its filter type and then 3 * width bytes: the residuals of a prediction from the bytes to
 * the left (a), above (b) and above left (c). All sums are modulo 256. */

#include <string.h>

enum { NONE, SUB, UP, AVERAGE, PAETH, PIXEL = 3 };

typedef unsigned char byte;
/* The three bytes of a pixel, and a fourth that is ignored. */
typedef short lanes __attribute__((vector_size(8)));
typedef byte quad __attribute__((vector_size(4)));

static inline lanes load(const byte *at) {
    quad bytes;
    memcpy(&bytes, at, 4);
    return __builtin_convertvector(bytes, lanes);
}

static inline void store(byte *at, lanes value) {
    quad bytes = __builtin_convertvector(value, quad);
    memcpy(at, &bytes, 4);
}

/* `yes` where the mask is all ones, else `no`. */
static inline lanes choose(lanes mask, lanes yes, lanes no) {
    return (mask & yes) | (~mask & no);
}

static inline lanes magnitude(lanes value) {
    return choose(value < 0, -value, value);
}

/* The one of a, b and c that is nearest to a + b - c; ties prefer a, then b. */
static inline lanes paeth(lanes a, lanes b, lanes c) {
    lanes near_a = b - c, near_b = a - c;
    lanes to_a = magnitude(near_a), to_b = magnitude(near_b), to_c = magnitude(near_a + near_b);
    lanes b_or_c = choose(to_b <= to_c, b, c);
    return choose((to_a <= to_b) & (to_a <= to_c), a, b_or_c);
}

static int paeth_of(int a, int b, int c) {
    int to_a = b > c ? b - c : c - b, to_b = a > c ? a - c : c - a;
    int sum = a + b - 2 * c, to_c = sum < 0 ? -sum : sum;
    if (to_a <= to_b && to_a <= to_c) return a;
    return to_b <= to_c ? b : c;
}

static void sub(const byte *row, byte *out, long length) {
    lanes a = {0};
    long at = 0;
    for (; at + PIXEL < length; at += PIXEL) {
        a = (load(row + at) + a) & 255;
        store(out + at, a);
    }
    for (; at < length; at++) out[at] = row[at] + (at < PIXEL ? 0 : out[at - PIXEL]);
}

static void up(const byte *row, const byte *above, byte *out, long length) {
    for (long at = 0; at < length; at++) out[at] = row[at] + above[at];
}

static void average(const byte *row, const byte *above, byte *out, long length) {
    lanes a = {0};
    long at = 0;
    for (; at + PIXEL < length; at += PIXEL) {
        a = (load(row + at) + ((a + load(above + at)) >> 1)) & 255;
        store(out + at, a);
    }
    for (; at < length; at++) {
        int left = at < PIXEL ? 0 : out[at - PIXEL];
        out[at] = row[at] + (left + above[at]) / 2;
    }
}

static void nearest(const byte *row, const byte *above, byte *out, long length) {
    lanes a = {0}, c = {0};
    long at = 0;
    for (; at + PIXEL < length; at += PIXEL) {
        lanes b = load(above + at);
        a = (load(row + at) + paeth(a, b, c)) & 255;
        c = b;
        store(out + at, a);
    }
    for (; at < length; at++) {
        int first = at < PIXEL;
        int left = first ? 0 : out[at - PIXEL], corner = first ? 0 : above[at - PIXEL];
        out[at] = row[at] + paeth_of(left, above[at], corner);
    }
}

/* ISA-L leaves the upper halves of vector registers dirty (seen in 2.32, after crc32 and inflate). SSE code has
 * to preserve them and then takes up to three times as long. */
static void clean_registers(void) {
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx")) __asm__ volatile("vzeroupper");
#endif
}

/* Unfilter `images` of rows [height, 1 + 3 * width] to `out` [count, height, 3 * width]. `zero_row` is the row of
 * zeros [3 * width] above the first row. Return the number of rows done: all, unless a filter type is
 * invalid. */
long unfilter(
    const byte *const *images, const byte *zero_row, byte *out, long count, long height, long width
) {
    long length = PIXEL * width;
    clean_registers();
    for (long image = 0; image < count; image++) {
        const byte *row = images[image], *above = zero_row;
        for (long y = 0; y < height; y++, row += 1 + length, above = out, out += length) {
            switch (row[0]) {
            case NONE: memcpy(out, row + 1, length); break;
            case SUB: sub(row + 1, out, length); break;
            case UP: up(row + 1, above, out, length); break;
            case AVERAGE: average(row + 1, above, out, length); break;
            case PAETH: nearest(row + 1, above, out, length); break;
            default: return image * height + y;
            }
        }
    }
    return count * height;
}
