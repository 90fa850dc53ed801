/* concat(y, parts...): the parts' columns side by side. */
#include "kernel.h"

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    for (int32_t row = begin; row < end; row++) {
        float *y = lt_row(op, step, 0, row);
        for (int part = 1; part < LT_MAX_ARGS && op->arg[part].cols; y += op->arg[part++].cols)
            memcpy(y, lt_row(op, step, part, row), (size_t)op->arg[part].cols * sizeof *y);
    }
}

LT_KERNEL(concat, lt_rows, run);
