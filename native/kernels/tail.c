/* tail(y, x): the last n_outputs of x's n_tokens rows. */
#include "kernel.h"

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t skipped = step->n_tokens - step->n_outputs;
    for (int32_t row = begin; row < end; row++)
        memcpy(lt_row(op, step, 0, row), lt_row(op, step, 1, skipped + row), (size_t)op->arg[0].cols * sizeof(float));
}

LT_KERNEL(tail, lt_rows, run);
