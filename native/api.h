/* lutra's native library, whole. Python reads this very file, so it holds declarations only.
 *
 * The library runs plans. A plan is a list of ops over memory that the caller owns; an op is bound, by
 * name, to the best kernel this CPU can run. The library never prints, never aborts, reads no file and no
 * environment variable, and keeps no memory of the caller's after lt_plan_free / lt_engine_free.
 */
#pragma once
#include <stdint.h>

#pragma GCC visibility push(default)

typedef struct lt_engine lt_engine; /* a pool of threads and the CPU features they may use */
typedef struct lt_plan lt_plan;     /* an immutable list of ops, each bound to a kernel */

/* Where an argument lives. The base address of every space but LT_ABSOLUTE comes with each step, so one plan
 * serves many sessions. LT_KV and LT_WORK are laid out as kernels/kv_cache.h says. */
enum { LT_ABSOLUTE = 0, LT_SCRATCH = 1, LT_IDS = 2, LT_LOGITS = 3, LT_KV = 4, LT_WORK = 5, LT_SPACES = 8 };

/* What recurrent layers remember, as floats: before the step (not read at position 0, where it is 0) and after it. A
 * step never writes to the one before, so a session whose step was cancelled still has it. */
enum { LT_BEFORE = 6, LT_AFTER = 7 };

/* All that changes between two runs of a plan. */
typedef struct lt_step {
    void *space[8];        /* base addresses, indexed by the spaces above; space[0] is NULL */
    int32_t n_tokens;      /* rows fed by this step, >= 1 */
    int32_t n_outputs;     /* the last n_outputs of them reach the logits, 0..n_tokens */
    int32_t pos;           /* position of the first row: how many tokens the KV cache holds */
    int32_t n_ctx;         /* positions the KV cache has room for, >= pos + n_tokens */
    const int32_t *cancel; /* NULL, or a flag: the run stops between stages once it is not 0 */
    int64_t *stage_ns;     /* NULL, or lt_plan_stages() counters to which each stage's time is added */
} lt_step;

typedef struct lt_arg {
    int64_t offset; /* bytes from the space's base; the address itself when the space is LT_ABSOLUTE */
    int32_t space;
    int32_t cols;   /* elements in a row */
    int64_t stride; /* bytes from one row to the next */
    int64_t each;   /* bytes from one expert's to the next, where it belongs to experts; else 0 */
} lt_arg;

enum { LT_MAX_ARGS = 8, LT_MAX_DIMS = 6, LT_MAX_FLOATS = 2, LT_MAX_EXPERTS = 1024 };
enum { LT_MAX_TILE = 1024 /* columns of a block that lt_pack_fields takes */ };
enum { LT_MAX_TERNARY = 32768 /* columns of a row that fit_ternary takes */ };

typedef struct lt_op {
    const char *name; /* "linear_t5"; copied by lt_plan_new */
    lt_arg arg[8];    /* outputs first, then inputs, in the order of the op's Python signature */
    int32_t dim[6];   /* integer attributes, in that order */
    float f[2];       /* float attributes, in that order */
    int32_t outputs;  /* 1: the op works on n_outputs rows, 0: on n_tokens rows, */
    int32_t times;    /* and on so many for each of these, >= 1 */
    int32_t experts;  /* 0, or the number of matrices of which each row has chosen one: experts.h */
    lt_arg chosen;    /* by which token which, then: int32 [n_tokens][choices] */
    int32_t joined;   /* 1: runs row by row in the same stage as the op before it, with no barrier between */
} lt_op;

/* Results of the calls below; 0 is success. */
enum { LT_OK = 0, LT_CANCELLED = 1, LT_NO_MEMORY = 2, LT_NO_KERNEL = 3, LT_NO_THREAD = 4, LT_BAD_ARGUMENT = 5 };

/* CPU features, as bits. */
uint32_t lt_cpu_features(void);
const char *lt_cpu_feature_name(int32_t bit); /* "avx2"; NULL past the last */
const char *lt_cpu_refused(void);             /* one that the CPU has and the features lack, and why; or NULL */

/* Threads >= 1, the caller's included. Kernels that need a feature outside `features` are not used. */
int32_t lt_engine_new(int32_t threads, uint32_t features, lt_engine **engine);
void lt_engine_free(lt_engine *engine); /* no plan of it may be running */

/* LT_BAD_ARGUMENT for more than LT_MAX_EXPERTS. On LT_NO_KERNEL, *failed is the index of the op that no kernel can run. */
int32_t lt_plan_new(lt_engine *engine, const lt_op *ops, int32_t n_ops, lt_plan **plan, int32_t *failed);
void lt_plan_free(lt_plan *plan);
int32_t lt_plan_stages(const lt_plan *plan);
int32_t lt_plan_stage_of(const lt_plan *plan, int32_t op);
const char *lt_plan_kernel(const lt_plan *plan, int32_t op); /* the name of the kernel bound to that op */

/* Runs every stage of the plan once. Calls from several threads take turns. */
int32_t lt_plan_run(lt_plan *plan, const lt_step *step);

/* The kernels in the library, whether or not this CPU can run them. */
int32_t lt_kernel_count(void);
const char *lt_kernel_name(int32_t index);
uint32_t lt_kernel_needs(int32_t index);

/* The k largest of n floats, largest first, ties by lower index; k <= n. `index` has room for k. */
int32_t lt_top_k(const float *x, int32_t n, int32_t k, int32_t *index);

/* Codes [rows][cols], each plus `add` (modulo 256), to the layout of runtime/formats/_uniform.py, at `bits` in chunks of
 * so many columns. LT_BAD_ARGUMENT for codes that have more bits, or a layout that there is not. */
int32_t lt_pack_codes(const uint8_t *codes, int64_t rows, int64_t cols, uint8_t add, int32_t bits, int32_t chunk,
                      uint8_t *data);

/* Ternary codes -1, 0, 1 [rows][cols] to the layout of runtime/formats/t5.py. LT_BAD_ARGUMENT for others. */
int32_t lt_pack_trits(const int8_t *codes, int64_t rows, int64_t cols, uint8_t *data);

/* `width` bits of every code of a block, those from `shift` up: in `count` bytes from `begin`. A run of bytes holds
 * first the codes in all their lowest bits, then those in the next, and so on. */
typedef struct lt_field {
    int32_t begin, count;
    int32_t width; /* 1, 2, 4 or 8 */
    int32_t shift;
    int32_t run; /* 1, or a multiple of 8 */
} lt_field;

/* n bfloat16 numbers as floats. */
void lt_widen_bf16(const uint16_t *from, int64_t n, float *to);

/* (code - zero) * scale of codes [rows][cols], int8 or else uint8; a scale and a zero for every `group` columns, or
 * fewer at a row's end: [rows][groups]. */
void lt_decode(const void *codes, int32_t is_signed, int64_t rows, int64_t cols, int64_t group, const float *scale,
               const float *zero, float *values);

/* The sums of (a - b)^2 and of a^2, of n floats each. */
void lt_squares(const float *a, const float *b, int64_t n, double *error, double *whole);

/* The sum of the magnitudes of n floats. */
double lt_magnitude(const float *x, int64_t n);

/* -1, 0 or 1 for each of n floats: the sign of those whose magnitude is more than `beyond`. */
void lt_signs(const float *x, int64_t n, float beyond, int8_t *codes);

/* Of every `group` columns of x [rows][cols], or fewer at a row's end, the largest magnitude, and whether others have
 * it too: all (LT_BINARY), all but those that are 0 (LT_TERNARY), or not (LT_MORE). */
enum { LT_MORE, LT_TERNARY, LT_BINARY };
void lt_levels(const float *x, int64_t rows, int64_t cols, int64_t group, float *largest, uint8_t *levels);

/* Codes [rows][cols] that lie as one stream of bits, lowest first, down each column of 32-bit words, `stride` words from
 * one to the next in a column. LT_BAD_ARGUMENT for bits other than 2, 3, 4 or 8, or streams that end within a word. */
int32_t lt_unpack_columns(const uint32_t *words, int64_t stride, int64_t rows, int64_t cols, int32_t bits,
                          uint8_t *codes);

/* Of n_groups groups of floats the nearest of n_values <= 16 values, which ascend, times the group's scale: their codes, and
 * the sum of squared errors of each group. code: that of each value. */
int32_t lt_nearest(const float *x, int64_t n_groups, int64_t group, const float *scale, const float *values,
                   const uint8_t *code, int32_t n_values, uint8_t *codes, float *error);

/* The codes of blocks of `nbytes`: [n_blocks][columns]. LT_BAD_ARGUMENT for fields that are not as said above. */
int32_t lt_unpack_fields(const uint8_t *blocks, int64_t n_blocks, int32_t nbytes, const lt_field *fields,
                         int32_t n_fields, int32_t columns, uint8_t *codes);

/* What lt_pack_codes makes of the codes [rows][n_blocks * columns] that lt_unpack_fields finds in [rows][n_blocks]
 * blocks, without an array of them all. LT_BAD_ARGUMENT as both, and for blocks that are not whole chunks. */
int32_t lt_pack_fields(const uint8_t *blocks, int64_t rows, int64_t n_blocks, int32_t nbytes, const lt_field *fields,
                       int32_t n_fields, int32_t columns, uint8_t add, int32_t bits, int32_t chunk, uint8_t *data);

#pragma GCC visibility pop
