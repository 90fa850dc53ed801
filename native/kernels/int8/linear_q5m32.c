#define BITS 5
#define NESTED 32
#define OFFSETS 1
#define WHOLE 0
#include "uniform.h"

LT_KERNEL(linear_q5m32, linear_units, linear_run);
