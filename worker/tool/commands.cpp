#include "worker/tool/commands.h"

#include <iostream>

namespace tessera::tool {

int report(const Error& error) {
  std::cerr << "error: " << error.message << "\n";
  return exit_code_of(error);
}

void print(const nlohmann::json& object, const std::string& text, bool json) {
  if (!json) {
    std::cout << text << std::endl;
    return;
  }
  nlohmann::json out = object;
  out["schema"] = 1;
  std::cout << out.dump() << std::endl;
}

}  // namespace tessera::tool
