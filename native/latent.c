/* Floats that stand for few values: what tells which, and turns them into codes. Loops that compilers vectorize. */
#include <math.h>
#include <string.h>

#include "api.h"

double lt_magnitude(const float *x, int64_t n) {
    enum { SIDE_BY_SIDE = 8 };
    double sums[SIDE_BY_SIDE] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + SIDE_BY_SIDE <= n; i += SIDE_BY_SIDE)
        for (int32_t k = 0; k < SIDE_BY_SIDE; k++) sums[k] += (double)fabsf(x[i + k]);
    for (; i < n; i++) sum += (double)fabsf(x[i]);
    for (int32_t k = 0; k < SIDE_BY_SIDE; k++) sum += sums[k];
    return sum;
}

void lt_signs(const float *x, int64_t n, float beyond, int8_t *codes) {
    for (int64_t i = 0; i < n; i++) codes[i] = (int8_t)((x[i] > beyond) - (x[i] < -beyond));
}

/* A float's bits without its sign: as integers they are in the order of the magnitudes, and what is no number comes last. */
static inline int32_t magnitude(const float *x) {
    int32_t bits;
    memcpy(&bits, x, sizeof bits);
    return bits & INT32_MAX;
}

void lt_levels(const float *x, int64_t rows, int64_t cols, int64_t group, float *largest, uint8_t *levels) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t begin = 0; begin < cols; begin += group, largest++, levels++) {
            const int64_t n = cols - begin < group ? cols - begin : group;
            int32_t most = 0, less = 0, between = 0;
            for (int64_t i = 0; i < n; i++) most = magnitude(x + i) > most ? magnitude(x + i) : most;
            for (int64_t i = 0; i < n; i++) {
                const int32_t m = magnitude(x + i);
                less |= m != most;
                between |= (m != most) & (m != 0);
            }
            memcpy(largest, &most, sizeof most);
            *levels = between ? LT_MORE : less ? LT_TERNARY : LT_BINARY;
            x += n;
        }
}
