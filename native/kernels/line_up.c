/* line_up(place, chosen; experts): where each of all rows' choices comes in the order of experts, those of the same one in
 * the order of rows. */
#include "kernel.h"

static int32_t units(const lt_op *op, const lt_step *step) { return lt_rows(op, step) > 0; }

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    (void)begin, (void)end;
    const int32_t rows = lt_rows(op, step), k = op->arg[0].cols;
    int32_t next[LT_MAX_EXPERTS + 1] = {0};
    for (int32_t row = 0; row < rows; row++) {
        const int32_t *chosen = lt_row(op, step, 1, row);
        for (int32_t i = 0; i < k; i++) next[chosen[i] + 1]++;
    }
    for (int32_t e = 0; e < op->dim[0]; e++) next[e + 1] += next[e];
    for (int32_t row = 0; row < rows; row++) {
        const int32_t *chosen = lt_row(op, step, 1, row);
        int32_t *place = lt_row(op, step, 0, row);
        for (int32_t i = 0; i < k; i++) place[i] = next[chosen[i]]++;
    }
}

LT_KERNEL(line_up, units, run);
