#define BITS 6
#define NESTED 16
#define OFFSETS 0
#define WHOLE 0
#include "uniform.h"

LT_KERNEL(linear_q6s16, linear_units, linear_run);
