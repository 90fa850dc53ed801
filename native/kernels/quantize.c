/* quantize(codes, scale, sum, x; group; least): int8 activations with one scale per group of columns, or per token as
 * BitNet b1.58 defines them (Ma et al. 2024): codes = rint(x * 127 / a), a = max(max|x|, least), scale = a / 127; and
 * the codes' sums, which kernels on unsigned weights need. Columns beyond x's are 0. */
#include "f32x16.h"
#include "kernel.h"

static float largest(const float *x, int32_t n) {
    f32x16 most = vset1(0);
    int32_t i = 0;
    for (; i + 16 <= n; i += 16) most = vmax(most, vabs(vload(x + i)));
    if (i < n) most = vmax(most, vabs(vloadn(x + i, n - i)));
    return vhmax(most);
}

/* n columns: their codes, the scale, and the codes' sum. */
static void quantize(int8_t *codes, float *scale, float *sum, const float *x, int32_t n, float least) {
    float a = largest(x, n);
    if (!(a > least)) a = least;
    const f32x16 s = vset1(127.0f / a);
    int32_t i = 0, total = 0;
    for (; i + 16 <= n; i += 16) vstore_i8(codes + i, vrint(vmul(vload(x + i), s)));
    if (i < n) vstoren_i8(codes + i, vrint(vmul(vloadn(x + i, n - i), s)), n - i);
    for (i = 0; i < n; i++) total += codes[i];
    *scale = a / 127.0f;
    *sum = (float)total;
}

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t padded = op->arg[0].cols, n = op->arg[3].cols, group = op->dim[0] ? op->dim[0] : n;
    for (int32_t row = begin; row < end; row++) {
        int8_t *codes = lt_row(op, step, 0, row);
        float *scale = lt_row(op, step, 1, row);
        float *sum = lt_row(op, step, 2, row);
        const float *x = lt_row(op, step, 3, row);
        for (int32_t i = 0; i < n; i += group)
            quantize(codes + i, scale++, sum++, x + i, lt_min(group, n - i), op->f[0]);
        memset(codes + n, 0, (size_t)(padded - n));
    }
}

LT_KERNEL(quantize, lt_rows, run);
