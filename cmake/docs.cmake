# docs: the reference of what users call, as HTML in the build folder, by Doxygen. Anything undocumented is a warning.
find_package(Doxygen QUIET)
if(NOT DOXYGEN_FOUND)
  message(STATUS "squat: no target docs, for there is no doxygen")
  return()
endif()

set(DOXYGEN_PROJECT_NUMBER ${PROJECT_VERSION})
set(DOXYGEN_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/docs)
set(DOXYGEN_STRIP_FROM_PATH ${PROJECT_SOURCE_DIR}/include)
set(DOXYGEN_STRIP_FROM_INC_PATH ${PROJECT_SOURCE_DIR}/include)
set(DOXYGEN_EXTENSION_MAPPING cuh=C++)
set(DOXYGEN_FILE_PATTERNS *.hpp *.cuh *.h *.md)
set(reference ${CMAKE_CURRENT_LIST_DIR}/reference.md)
set(DOXYGEN_USE_MDFILE_AS_MAINPAGE ${reference})
set(DOXYGEN_JAVADOC_AUTOBRIEF YES)
# Each version finds something else: the one of Debian 12 must find nothing, others warn.
if(DOXYGEN_VERSION VERSION_LESS 1.9.5)
  set(DOXYGEN_WARN_AS_ERROR FAIL_ON_WARNINGS)
endif()
set(DOXYGEN_DISTRIBUTE_GROUP_DOC YES)
set(DOXYGEN_INLINE_INHERITED_MEMB YES)
set(DOXYGEN_QUIET YES)
set(DOXYGEN_HAVE_DOT NO)
set(DOXYGEN_GENERATE_LATEX NO)
set(DOXYGEN_SORT_MEMBER_DOCS NO)
set(DOXYGEN_ENABLE_PREPROCESSING YES)
set(DOXYGEN_MACRO_EXPANSION YES)
set(DOXYGEN_EXPAND_ONLY_PREDEF YES)
set(DOXYGEN_PREDEFINED SQUAT_COMPILED SQUAT_PUBLIC= SQUAT_HOST_DEVICE=)
# The namespace of the instruction set is no user's: its names are those of squat.
set(DOXYGEN_FILTER_PATTERNS "\"*=sed -e 's/::inline SQUAT_[A-Z]*_NAMESPACE//'\"")
set(DOXYGEN_EXCLUDE_SYMBOLS squat::detail squat::detail::* squat::checks squat::checks::* squat::cuda squat::cuda::*
    squat::NamedTensor squat::possible_sums squat::write_value squat::throw_*)

set(public_headers
  squat.hpp squat.cuh squat.h model.hpp
  cache/attention_tensors.hpp cache/kv_cache.hpp cache/memory_report.hpp cache/merge_attention.hpp cache/options.hpp
  cache/page_budget.hpp cache/sequence_tokens.hpp cache/snapshot/streams.hpp
  coding/coding.hpp coding/prior.hpp coding/rotary_table.hpp
  core/any_tensor.hpp core/config.hpp core/element_range.hpp core/error.hpp core/parallel.hpp core/tensor.hpp core/version.hpp
  cuda/operations.hpp
  model/cpu_group.hpp model/group_cache.hpp model/make_group.hpp model/model_cache.hpp model/model_options.hpp
  parallel/openmp.hpp parallel/rank_transport.hpp parallel/split_context.hpp parallel/split_heads.hpp parallel/thread_pool.hpp)
list(TRANSFORM public_headers PREPEND ${PROJECT_SOURCE_DIR}/include/squat/)
doxygen_add_docs(docs ${reference} ${public_headers})
