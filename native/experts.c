#include "experts.h"

typedef struct {
    int32_t count;
    int32_t expert[LT_MAX_EXPERTS], begin[LT_MAX_EXPERTS + 1]; /* of every range of rows */
} ranges;

static void find_ranges(ranges *r, const lt_op *op, const lt_step *step) {
    int32_t rows[LT_MAX_EXPERTS] = {0};
    const int32_t tokens = op->outputs ? step->n_outputs : step->n_tokens;
    for (int32_t token = 0; token < tokens; token++) {
        const int32_t *chosen = lt_at(&op->chosen, step, token);
        for (int32_t i = 0; i < op->chosen.cols; i++) rows[chosen[i]]++;
    }
    r->count = r->begin[0] = 0;
    for (int32_t e = 0; e < op->experts; e++) {
        if (rows[e] == 0) continue;
        r->expert[r->count] = e;
        r->begin[r->count + 1] = r->begin[r->count] + rows[e];
        r->count++;
    }
}

/* The op on the rows of one range, with that expert's matrix. */
static lt_op op_of(const ranges *r, int32_t i, const lt_op *op) {
    lt_op own = *op;
    own.outputs = 0;
    own.times = 1;
    for (int a = 0; a < LT_MAX_ARGS; a++)
        own.arg[a].offset += own.arg[a].each ? r->expert[i] * own.arg[a].each : r->begin[i] * own.arg[a].stride;
    return own;
}

static lt_step step_of(const ranges *r, int32_t i, const lt_step *step) {
    lt_step own = *step;
    own.n_tokens = r->begin[i + 1] - r->begin[i];
    return own;
}

/* Parts of one range: they depend on the matrix only. */
static int32_t units_of(const lt_kernel *kernel, const ranges *r, const lt_op *op, const lt_step *step) {
    const lt_op own_op = op_of(r, 0, op);
    const lt_step own_step = step_of(r, 0, step);
    return kernel->units(&own_op, &own_step);
}

int32_t lt_experts_units(const lt_kernel *kernel, const lt_op *op, const lt_step *step) {
    ranges r;
    find_ranges(&r, op, step);
    return r.count ? r.count * units_of(kernel, &r, op, step) : 0;
}

void lt_experts_run(const lt_kernel *kernel, const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    ranges r;
    find_ranges(&r, op, step);
    const int32_t units = units_of(kernel, &r, op, step);
    while (begin < end) {
        const int32_t i = begin / units, first = begin % units, last = lt_min(units, first + end - begin);
        const lt_op own_op = op_of(&r, i, op);
        const lt_step own_step = step_of(&r, i, step);
        kernel->run(&own_op, &own_step, first, last);
        begin += last - first;
    }
}
