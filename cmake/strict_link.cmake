# Node itself defines Node-API, and only when the addon is loaded: so the addon's own link cannot be strict. The same
# objects are linked once more, into a library nobody loads, against a stand-in that defines the functions of
# Node-API 8 and no other. What is still unresolved then would be missing on a user's machine.
set(symbols_script
    "const { v8 } = require('node-api-headers').symbols; [...v8.js_native_api_symbols, ...v8.node_api_symbols].join(';')")
execute_process(
  COMMAND node -p "${symbols_script}"
  WORKING_DIRECTORY ${CMAKE_SOURCE_DIR}
  OUTPUT_VARIABLE node_api_symbols
  OUTPUT_STRIP_TRAILING_WHITESPACE
  RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "node-api-headers does not say which functions Node-API has")
endif()

set(stand_in "")
foreach(symbol ${node_api_symbols})
  string(APPEND stand_in "extern \"C\" __attribute__((visibility(\"default\"))) void ${symbol}() {}\n")
endforeach()
file(GENERATE OUTPUT ${CMAKE_BINARY_DIR}/strict/node_api.cc CONTENT "${stand_in}")

add_library(node_api SHARED ${CMAKE_BINARY_DIR}/strict/node_api.cc)
add_library(strict_link SHARED $<TARGET_OBJECTS:${PROJECT_NAME}>)
set_target_properties(node_api strict_link PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/strict)
target_link_libraries(strict_link PRIVATE bhyve_wire node_api)
target_link_options(strict_link PRIVATE -Wl,-z,defs)
