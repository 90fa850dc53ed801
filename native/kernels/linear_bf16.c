#include "bf16.h"

LT_KERNEL(linear_bf16, linear_units, linear_run);
