/* Plans: ops bound to kernels by name, grouped into stages. */
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "engine.h"
#include "experts.h"
#include "kernels/kernel.h"

/* Every kernel in the library, weakest first; generated from the file names in kernels/. */
extern const lt_kernel *const lt_kernels[];
extern const int32_t lt_n_kernels;

struct lt_plan {
    lt_engine *engine;
    int32_t n_ops, n_stages;
    lt_op *ops;
    const lt_kernel **kernels; /* one per op */
    int32_t *first;            /* the first op of each stage, and n_ops behind the last */
};

int32_t lt_kernel_count(void) { return lt_n_kernels; }
const char *lt_kernel_name(int32_t i) { return i >= 0 && i < lt_n_kernels ? lt_kernels[i]->name : NULL; }
uint32_t lt_kernel_needs(int32_t i) { return i >= 0 && i < lt_n_kernels ? lt_kernels[i]->needs : 0; }

/* The strongest kernel for the op: the last in the table whose needs are met. */
static const lt_kernel *bind(const char *op, uint32_t features) {
    for (int32_t i = lt_n_kernels - 1; i >= 0; i--) {
        const lt_kernel *k = lt_kernels[i];
        if ((k->needs & ~features) == 0 && strcmp(k->op, op) == 0) return k;
    }
    return NULL;
}

static lt_plan *allocate(int32_t n_ops) {
    lt_plan *plan = calloc(1, sizeof *plan);
    if (plan == NULL) return NULL;
    plan->ops = calloc((size_t)n_ops, sizeof *plan->ops);
    plan->kernels = calloc((size_t)n_ops, sizeof *plan->kernels);
    plan->first = calloc((size_t)n_ops + 1, sizeof *plan->first);
    if (plan->ops && plan->kernels && plan->first) return plan;
    lt_plan_free(plan);
    return NULL;
}

int32_t lt_plan_new(lt_engine *engine, const lt_op *ops, int32_t n_ops, lt_plan **result, int32_t *failed) {
    if (n_ops < 1 || ops[0].joined) return LT_BAD_ARGUMENT;
    lt_plan *plan = allocate(n_ops);
    if (plan == NULL) return LT_NO_MEMORY;
    plan->engine = engine;
    plan->n_ops = n_ops;
    for (int32_t i = 0; i < n_ops; i++) {
        if (ops[i].times < 1 || ops[i].experts > LT_MAX_EXPERTS) {
            lt_plan_free(plan);
            return LT_BAD_ARGUMENT;
        }
        plan->ops[i] = ops[i];
        plan->kernels[i] = bind(ops[i].name, lt_engine_features(engine));
        if (plan->kernels[i] == NULL) {
            *failed = i;
            lt_plan_free(plan);
            return LT_NO_KERNEL;
        }
        plan->ops[i].name = plan->kernels[i]->op; /* the caller's string need not live on */
        if (!ops[i].joined) plan->first[plan->n_stages++] = i;
    }
    plan->first[plan->n_stages] = n_ops;
    *result = plan;
    return LT_OK;
}

void lt_plan_free(lt_plan *plan) {
    if (plan == NULL) return;
    free(plan->ops);
    free(plan->kernels);
    free(plan->first);
    free(plan);
}

int32_t lt_plan_stages(const lt_plan *plan) { return plan->n_stages; }

int32_t lt_plan_stage_of(const lt_plan *plan, int32_t op) {
    for (int32_t s = 0; s < plan->n_stages; s++)
        if (op < plan->first[s + 1]) return s;
    return -1;
}

const char *lt_plan_kernel(const lt_plan *plan, int32_t op) {
    return op >= 0 && op < plan->n_ops ? plan->kernels[op]->name : NULL;
}

typedef struct plan_job {
    lt_job job;
    const lt_plan *plan;
} plan_job;

static int32_t stage_units(const lt_job *job, int32_t stage) {
    const lt_plan *plan = ((const plan_job *)job)->plan;
    const int32_t first = plan->first[stage];
    const lt_op *op = &plan->ops[first];
    const lt_kernel *kernel = plan->kernels[first];
    return op->experts ? lt_experts_units(kernel, op, job->step) : kernel->units(op, job->step);
}

/* Joined ops work row by row on what the op before them made, so a range of rows goes through all of them. */
static void stage_run(const lt_job *job, int32_t stage, int32_t begin, int32_t end) {
    const lt_plan *plan = ((const plan_job *)job)->plan;
    for (int32_t i = plan->first[stage]; i < plan->first[stage + 1]; i++) {
        const lt_op *op = &plan->ops[i];
        if (op->experts) lt_experts_run(plan->kernels[i], op, job->step, begin, end);
        else plan->kernels[i]->run(op, job->step, begin, end);
    }
}

int32_t lt_plan_run(lt_plan *plan, const lt_step *step) {
    if (step->n_tokens < 1 || step->n_outputs < 0 || step->n_outputs > step->n_tokens || step->pos < 0 ||
        step->n_tokens > step->n_ctx - step->pos)
        return LT_BAD_ARGUMENT;
    plan_job job = {{plan->n_stages, stage_units, stage_run, step}, plan};
    return lt_engine_run(plan->engine, &job.job);
}
