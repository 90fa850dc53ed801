/* quantize(codes, scale, sum, x): int8 activations per token, as BitNet b1.58 defines them (Ma et al. 2024):
 * codes = rint(x * 127 / a), a = max(max|x|, 1e-5), scale = a / 127; and the codes' sum, which kernels on unsigned
 * weights need. Columns beyond x's are 0. */
#include "f32x16.h"
#include "kernel.h"

static float largest(const float *x, int32_t n) {
    f32x16 most = vset1(0);
    int32_t i = 0;
    for (; i + 16 <= n; i += 16) most = vmax(most, vabs(vload(x + i)));
    if (i < n) most = vmax(most, vabs(vloadn(x + i, n - i)));
    return vhmax(most);
}

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t padded = op->arg[0].cols, n = op->arg[3].cols;
    for (int32_t row = begin; row < end; row++) {
        int8_t *codes = lt_row(op, step, 0, row);
        const float *x = lt_row(op, step, 3, row);
        float a = largest(x, n);
        if (!(a > 1e-5f)) a = 1e-5f;
        const f32x16 s = vset1(127.0f / a);
        int32_t i = 0;
        for (; i + 16 <= n; i += 16) vstore_i8(codes + i, vrint(vmul(vload(x + i), s)));
        if (i < n) vstoren_i8(codes + i, vrint(vmul(vloadn(x + i, n - i), s)), n - i);
        memset(codes + n, 0, (size_t)(padded - n));
        int32_t sum = 0;
        for (i = 0; i < n; i++) sum += codes[i];
        *(float *)lt_row(op, step, 1, row) = a / 127.0f;
        *(int32_t *)lt_row(op, step, 2, row) = sum;
    }
}

LT_KERNEL(quantize, lt_rows, run);
