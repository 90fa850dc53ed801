/* layer_norm(y, x, weight; eps): y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias (Ba et al. 2016), of runs of
 * as many columns as the weight has. The bias lies behind it. */
#include <math.h>

#include "f32x16.h"
#include "kernel.h"

/* Some columns less the mean, and 0 in the place of those that there are not. */
static f32x16 deviation(const float *x, int32_t i, int32_t n, float mean) {
    float lanes[16] = {0};
    if (i + 16 <= n) return vsub(vload(x + i), vset1(mean));
    vstoren(lanes, vsub(vloadn(x + i, n - i), vset1(mean)), n - i);
    return vload(lanes);
}

static float mean_of(const float *x, int32_t n) {
    f32x16 sum = vset1(0);
    for (int32_t i = 0; i < n; i += 16) sum = vadd(sum, deviation(x, i, n, 0));
    return vsum(sum) / (float)n;
}

static float variance_of(const float *x, int32_t n, float mean) {
    f32x16 sum = vset1(0);
    for (int32_t i = 0; i < n; i += 16) {
        const f32x16 d = deviation(x, i, n, mean);
        sum = vfma(d, d, sum);
    }
    return vsum(sum) / (float)n;
}

static void normalize(float *y, const float *x, const float *weight, int32_t n, float eps) {
    const float mean = mean_of(x, n), scale = 1.0f / sqrtf(variance_of(x, n, mean) + eps);
    for (int32_t i = 0; i < n; i++) y[i] = (x[i] - mean) * scale * weight[i] + weight[n + i];
}

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t n = op->arg[2].cols / 2;
    const float *weight = lt_row(op, step, 2, 0);
    for (int32_t row = begin; row < end; row++) {
        float *y = lt_row(op, step, 0, row);
        const float *x = lt_row(op, step, 1, row);
        for (int32_t i = 0; i < op->arg[0].cols; i += n) normalize(y + i, x + i, weight, n, op->f[0]);
    }
}

LT_KERNEL(layer_norm, lt_rows, run);
