#include <cstdio>
#include <squat/squat.hpp>

// The options alone: what calls a cache compiles its kernels, which the quickstart does in other tests.
int main() {
  const squat::Options options =
      squat::published_squat({.query_heads = 8, .kv_heads = 2, .head_dim = 64});
  std::printf("squat %d.%d.%d: pages of %d tokens as published\n", SQUAT_VERSION_MAJOR,
              SQUAT_VERSION_MINOR, SQUAT_VERSION_PATCH, options.page_tokens);
}
