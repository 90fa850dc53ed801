/* take_columns(y, x, order): y[i] = x[order[i]], in every row. Places that no column has, as -1, are read as 0: an order
 * may come from a file. */
#include "kernel.h"

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t n = op->arg[0].cols, cols = op->arg[1].cols, *order = lt_row(op, step, 2, 0);
    for (int32_t row = begin; row < end; row++) {
        float *y = lt_row(op, step, 0, row);
        const float *x = lt_row(op, step, 1, row);
        for (int32_t i = 0; i < n; i++) y[i] = (uint32_t)order[i] < (uint32_t)cols ? x[order[i]] : 0.0f;
    }
}

LT_KERNEL(take_columns, lt_rows, run);
