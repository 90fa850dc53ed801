/* scale_rows(y, x, scale): y = x * scale, a scale for each row. */
#include "kernel.h"

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    for (int32_t row = begin; row < end; row++) {
        float *y = lt_row(op, step, 0, row);
        const float *x = lt_row(op, step, 1, row), *scale = lt_row(op, step, 2, row);
        for (int32_t i = 0; i < op->arg[0].cols; i++) y[i] = x[i] * *scale;
    }
}

LT_KERNEL(scale_rows, lt_rows, run);
