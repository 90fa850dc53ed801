#include "kv_q8.h"
#include "attention_codes.h"

LT_KERNEL(attention_q8, units, run);
