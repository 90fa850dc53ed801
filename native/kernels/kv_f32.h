/* Keys and values as float32. */
#define KV_TYPE float
#define KV_LOAD vload
#define KV_LOADN vloadn
#define KV_STORE vstore
#define KV_STOREN vstoren
