/* scale(y, x; factor): y = x * factor. */
#include "kernel.h"

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    for (int32_t row = begin; row < end; row++) {
        float *y = lt_row(op, step, 0, row);
        const float *x = lt_row(op, step, 1, row);
        for (int32_t i = 0; i < op->arg[0].cols; i++) y[i] = x[i] * op->f[0];
    }
}

LT_KERNEL(scale, lt_rows, run);
