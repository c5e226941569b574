# Turns a text file into a C++ function: cmake -DIN=... -DOUT=... -DHEADER=... -DFUNCTION=ns::name -P embed.cmake
file(READ ${IN} content HEX)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${content}")
file(WRITE ${OUT} "#include \"${HEADER}\"\n#include <string>\nnamespace { const unsigned char kBytes[] = {${bytes}}; }\nconst std::string& ${FUNCTION}() {\n  static const std::string text(reinterpret_cast<const char*>(kBytes), sizeof kBytes);\n  return text;\n}\n")
