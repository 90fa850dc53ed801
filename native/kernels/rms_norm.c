/* rms_norm(y, x, weight; eps): y = x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019), of every run of as many
 * columns as there are weights: of a row, or of each head. */
#include <math.h>

#include "f32x16.h"
#include "kernel.h"

static float sum_of_squares(const float *x, int32_t n) {
    f32x16 a = vset1(0), b = vset1(0);
    int32_t i = 0;
    for (; i + 32 <= n; i += 32) {
        f32x16 lo = vload(x + i), hi = vload(x + i + 16);
        a = vfma(lo, lo, a);
        b = vfma(hi, hi, b);
    }
    for (; i < n; i += 16) {
        f32x16 v = n - i < 16 ? vloadn(x + i, n - i) : vload(x + i);
        a = vfma(v, v, a);
    }
    return vsum(vadd(a, b));
}

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t n = op->arg[2].cols, runs = op->arg[0].cols / n;
    const float *weight = lt_row(op, step, 2, 0);
    for (int32_t row = begin; row < end; row++) {
        float *y = lt_row(op, step, 0, row);
        const float *x = lt_row(op, step, 1, row);
        for (int32_t r = 0; r < runs; r++, x += n, y += n) {
            const float scale = 1.0f / sqrtf(sum_of_squares(x, n) / (float)n + op->f[0]);
            for (int32_t i = 0; i < n; i++) y[i] = x[i] * scale * weight[i];
        }
    }
}

LT_KERNEL(rms_norm, lt_rows, run);
