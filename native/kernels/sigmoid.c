/* sigmoid(y, x): y = 1 / (1 + e^-x). */
#include "f32x16.h"
#include "kernel.h"

static inline f32x16 sigmoid(f32x16 x) { return vdiv(vset1(1), vadd(vset1(1), vexp(vsub(vset1(0), x)))); }

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t n = op->arg[0].cols;
    for (int32_t row = begin; row < end; row++) {
        float *y = lt_row(op, step, 0, row);
        const float *x = lt_row(op, step, 1, row);
        int32_t i = 0;
        for (; i + 16 <= n; i += 16) vstore(y + i, sigmoid(vload(x + i)));
        if (i < n) vstoren(y + i, sigmoid(vloadn(x + i, n - i)), n - i);
    }
}

LT_KERNEL(sigmoid, lt_rows, run);
