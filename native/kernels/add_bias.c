/* add_bias(y, x, bias): y = x + bias, the same bias for every row. */
#include "kernel.h"

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const float *bias = lt_row(op, step, 2, 0);
    for (int32_t row = begin; row < end; row++) {
        float *y = lt_row(op, step, 0, row);
        const float *x = lt_row(op, step, 1, row);
        for (int32_t i = 0; i < op->arg[0].cols; i++) y[i] = x[i] + bias[i];
    }
}

LT_KERNEL(add_bias, lt_rows, run);
