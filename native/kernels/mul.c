/* mul(y, a, b): y = a * b. */
#include "kernel.h"

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    for (int32_t row = begin; row < end; row++) {
        float *y = lt_row(op, step, 0, row);
        const float *a = lt_row(op, step, 1, row), *b = lt_row(op, step, 2, row);
        for (int32_t i = 0; i < op->arg[0].cols; i++) y[i] = a[i] * b[i];
    }
}

LT_KERNEL(mul, lt_rows, run);
