// Embeds tiles with the model file of an ONNX bundle, without Python:
//     dotnet add package Microsoft.ML.OnnxRuntime
//     dotnet run BUNDLE/model.onnx tiles.rgb
// tiles.rgb holds tiles one after the other, RGB, 8 bits, row by row. Prints one line of numbers a tile.
using System.Globalization;
using Microsoft.ML.OnnxRuntime;

if (args.Length != 2)
{
    Console.Error.WriteLine("usage: embed MODEL.onnx TILES.rgb");
    return 2;
}
using var options = new SessionOptions();
// INT8 without VNNI or AMX: 8-bit sums saturate and embeddings are wrong. With this they are right on every processor.
options.AddSessionConfigEntry("session.x64quantprecision", "1");
using var session = new InferenceSession(args[0], options);
long side = session.InputMetadata["tiles"].Dimensions[1];
byte[] pixels = File.ReadAllBytes(args[1]);
long tile = side * side * 3;
if (pixels.Length == 0 || pixels.Length % tile != 0)
{
    Console.Error.WriteLine($"{args[1]}: expected tiles of {side} x {side} px, RGB");
    return 5;
}
using var tiles = OrtValue.CreateTensorValueFromMemory(pixels, new[] { pixels.Length / tile, side, side, 3L });
using var run = new RunOptions();
var inputs = new Dictionary<string, OrtValue> { ["tiles"] = tiles };
using var outputs = session.Run(run, inputs, new[] { "embedding" });
int width = (int)outputs[0].GetTensorTypeAndShape().Shape[1];
ReadOnlySpan<float> embeddings = outputs[0].GetTensorDataAsSpan<float>();
for (int i = 0; i < embeddings.Length; i++)
{
    Console.Write(embeddings[i].ToString(CultureInfo.InvariantCulture));
    Console.Write((i + 1) % width == 0 ? '\n' : ' ');
}
return 0;
