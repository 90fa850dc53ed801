#include "kv_q8.h"
#include "attention.h"

LT_KERNEL(attention_q8, units, run);
