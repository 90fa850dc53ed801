#define BITS 4
#define NESTED 32
#define LOAD_SCALE(p) vload_i8((const int8_t *)(p))
#include "codebook.h"

LT_KERNEL(linear_c4i32, linear_units, linear_run);
