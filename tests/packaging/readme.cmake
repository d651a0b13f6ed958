# The README shows examples/quickstart as it is compiled.
cmake_minimum_required(VERSION 3.25)
file(READ ${SOURCE}/README.md readme)
file(READ ${SOURCE}/examples/quickstart/main.cpp quickstart)
string(FIND "${readme}" "```cpp\n${quickstart}```\n" place)
if(place EQUAL -1)
  message(FATAL_ERROR "README.md does not hold examples/quickstart/main.cpp as it is: copy it into the block of that section")
endif()
