#define BITS 2
#define NESTED 16
#define OFFSETS 1
#define WHOLE 0
#include "uniform.h"

LT_KERNEL(linear_q2m16, linear_units, linear_run);
