#define BITS 3
#include "codebook.h"

LT_KERNEL(linear_c3, linear_units, linear_run);
