#pragma once

#include <string>

namespace tessera::coordinator {

// The status page: one self-contained HTML document (coordinator/dashboard/index.html, embedded at build time).
const std::string& dashboard_page();

}  // namespace tessera::coordinator
