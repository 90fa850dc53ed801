#define BITS 4
#define NESTED 16
#define LOAD_SCALE vload_f8
#include "codebook.h"

LT_KERNEL(linear_c4f16, linear_units, linear_run);
