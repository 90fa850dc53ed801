#define BITS 4
#define NESTED 16
#define OFFSETS 0
#define WHOLE 0
#include "uniform.h"

LT_KERNEL(linear_q4s16, linear_units, linear_run);
