#include "kv_f16.h"
#include "attention_float.h"

LT_KERNEL(attention_f16, units, run);
