// The shards of a remote data path.
//
//   s3://BUCKET/PREFIX/              the .tar objects right below it
//   s3://BUCKET/PREFIX/train-*.tar   those that match (*, ?, [...])
//   ..../train-{000..099}.tar        a range of numbers, s3 or http(s)
//   ..../train.tar                   one
//   http(s)://HOST/shards/list.txt   a listing: one shard a line, relative to its own folder, # begins a comment
//
// Their order is bytewise by name and their paths are relative to the folder that holds them all, as for local shards, so
// the manifest's digest is the same. A classes.txt beside them is read.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/result.h"
#include "data_loader/dataset/remote/object_store.h"
#include "data_loader/dataset/source.h"

namespace tessera::data {

// Base and identity, without a request. Error: kFixConfig (malformed braces, no bucket, an http folder).
Result<SourcePlace> place_remote_source(const std::string& data_path);
// Lists the shards. Errors: kFixData (nothing there, no tar, the server's refusals), kIo.
Result<Source> find_remote_source(const std::string& data_path, ObjectStore& store);

}  // namespace tessera::data
