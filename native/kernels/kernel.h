/* What a kernel is, and the few helpers that all of them share.
 *
 * A kernel file is named <op>[_<isa>].c. With an ISA suffix it is compiled once, with that ISA's flags. Without
 * one it is portable and is compiled once per portable level, each time with other flags and another LT_ISA.
 * CMakeLists.txt holds the one table of ISAs; LT_ISA and LT_NEEDS come from there.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "../api.h"
#include "../cpu.h"

typedef struct lt_kernel {
    const char *op;   /* "linear_t5" */
    const char *name; /* "linear_t5_avx512vnni" */
    uint32_t needs;   /* CPU features it cannot run without */
    /* How many independent parts the op has in this step; threads take ranges of them. */
    int32_t (*units)(const lt_op *op, const lt_step *step);
    /* Computes parts begin <= i < end. */
    void (*run)(const lt_op *op, const lt_step *step, int32_t begin, int32_t end);
} lt_kernel;

#define LT_STR_(x) #x
#define LT_STR(x) LT_STR_(x)
#define LT_CAT_(a, b) a##_##b
#define LT_CAT(a, b) LT_CAT_(a, b)

/* Every kernel file ends with one of these. */
#define LT_KERNEL(op_name, units_fn, run_fn)                                                                    \
    extern const lt_kernel LT_CAT(op_name, LT_ISA);                                                             \
    const lt_kernel LT_CAT(op_name, LT_ISA) = {                                                                 \
        .op = #op_name, .name = #op_name "_" LT_STR(LT_ISA), .needs = LT_NEEDS, .units = units_fn, .run = run_fn}

/* Rows this op works on. */
static inline int32_t lt_rows(const lt_op *op, const lt_step *step) {
    return (op->outputs ? step->n_outputs : step->n_tokens) * op->times;
}

/* The position of the first of them. */
static inline int32_t lt_first_position(const lt_op *op, const lt_step *step) {
    return step->pos + (op->outputs ? step->n_tokens - step->n_outputs : 0);
}

/* The first byte of a row of an argument; NULL for an argument that was not given. */
static inline void *lt_at(const lt_arg *a, const lt_step *step, int64_t row) {
    char *base = (char *)step->space[a->space];
    if (base == NULL) base = (char *)(intptr_t)a->offset;
    else base += a->offset;
    return base == NULL ? NULL : base + row * a->stride;
}
static inline void *lt_row(const lt_op *op, const lt_step *step, int arg, int64_t row) {
    return lt_at(&op->arg[arg], step, row);
}

/* Bytes from the scales that are read to those to ask for: weights come eight times as fast, and are asked for 2 KiB ahead. */
enum { SCALES_AHEAD = 256 };

static inline int32_t lt_min(int32_t a, int32_t b) { return a < b ? a : b; }
static inline int32_t lt_max(int32_t a, int32_t b) { return a > b ? a : b; }
static inline int32_t lt_ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }
