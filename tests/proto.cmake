# proto/: the wire form of every message, and the channel over real loopback sockets.
tessera_test(codec_test LABEL unit LIBS tessera_proto SOURCES unit/proto/codec_test.cpp)
tessera_test(channel_test LABEL integration TIMEOUT 120 LIBS tessera_proto SOURCES unit/proto/channel_test.cpp)
