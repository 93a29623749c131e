# Node defines the functions of Node-API, but only when the addon is loaded. So the link of the addon itself cannot be
# strict. The same objects are linked once more, into a library that is never loaded, against a stub library that
# defines exactly the functions of Node-API 8. A symbol that is still unresolved would be missing on a user's machine.
set(symbols_script
    "const { v8 } = require('node-api-headers').symbols; [...v8.js_native_api_symbols, ...v8.node_api_symbols].join(';')")
execute_process(
  COMMAND node -p "${symbols_script}"
  WORKING_DIRECTORY ${CMAKE_SOURCE_DIR}
  OUTPUT_VARIABLE node_api_symbols
  OUTPUT_STRIP_TRAILING_WHITESPACE
  RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "node-api-headers does not list the functions of Node-API")
endif()

set(stub "")
foreach(symbol ${node_api_symbols})
  string(APPEND stub "extern \"C\" __attribute__((visibility(\"default\"))) void ${symbol}() {}\n")
endforeach()
file(GENERATE OUTPUT ${CMAKE_BINARY_DIR}/strict/node_api.cc CONTENT "${stub}")

add_library(node_api SHARED ${CMAKE_BINARY_DIR}/strict/node_api.cc)
add_library(strict_link SHARED $<TARGET_OBJECTS:${PROJECT_NAME}>)
set_target_properties(node_api strict_link PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/strict)
target_link_libraries(strict_link PRIVATE bhyve_wire node_api)
target_link_options(strict_link PRIVATE -Wl,-z,defs)
