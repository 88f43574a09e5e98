// Embeds tiles with the model file of an OpenVINO bundle, without Python:
//     embed BUNDLE/model.xml tiles.rgb
// tiles.rgb holds tiles one after the other, RGB, 8 bits, row by row. Prints one line of numbers a tile.
#include <fstream>
#include <iostream>
#include <iterator>
#include <vector>

#include <openvino/openvino.hpp>

int main(int argc, char** argv) {
    if (argc != 3) {
        std::cerr << "usage: embed MODEL.xml TILES.rgb\n";
        return 2;
    }
    ov::Core core;
    auto model = core.read_model(argv[1]);
    const size_t side = model->input().get_partial_shape()[1].get_length();
    std::ifstream file(argv[2], std::ios::binary);
    std::vector<char> pixels{std::istreambuf_iterator<char>(file), {}};
    const size_t tile = side * side * 3;
    if (pixels.empty() || pixels.size() % tile != 0) {
        std::cerr << argv[2] << ": expected tiles of " << side << " x " << side << " px, RGB\n";
        return 5;
    }
    ov::AnyMap properties{{"INFERENCE_PRECISION_HINT", "f32"}};
    // INT8 without VNNI or AMX: 8-bit sums saturate and embeddings are wrong. This is right on every processor, and
    // costs the speed of INT8: leave it out where the processor has either.
    if (model->has_rt_info("atlas_edge_notice")) properties["LP_TRANSFORMS_MODE"] = false;
    auto request = core.compile_model(model, "CPU", properties).create_infer_request();
    request.set_input_tensor(ov::Tensor(ov::element::u8, {pixels.size() / tile, side, side, 3}, pixels.data()));
    request.infer();
    const auto embeddings = request.get_output_tensor(0);
    const size_t width = embeddings.get_shape()[1];
    for (size_t i = 0; i < embeddings.get_size(); ++i)
        std::cout << embeddings.data<float>()[i] << ((i + 1) % width ? ' ' : '\n');
}
