// Envelope <-> bytes (Protobuf). The only place that knows *.pb.h.
#pragma once

#include <string>
#include <string_view>

#include "common/result.h"
#include "proto/messages.h"

namespace tessera::proto {

std::string encode(const Envelope& envelope);
// Error kFixData: not a Tessera envelope, an unknown payload, or a field out of range (lists that do not fit together,
// negative sizes). Never throws, whatever the bytes.
Result<Envelope> decode(std::string_view bytes);
// The payload's name, "StepDone", for logs.
const char* payload_name(const Payload& payload);

}  // namespace tessera::proto
