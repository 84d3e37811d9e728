package tensorgate.client;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonArray;
import com.google.gson.JsonObject;
import com.google.protobuf.ByteString;
import java.io.IOException;
import java.io.PrintStream;
import java.io.UncheckedIOException;
import java.math.BigInteger;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Base64;
import tensorgate.inference.ModelInferResponse;

/** Writes lines of JSON, outputs or an error, from any thread. */
final class Answers {
    private final Gson gson = new GsonBuilder().disableHtmlEscaping().create();
    private final PrintStream out;
    private int count;
    private int failed;

    Answers(PrintStream out) {
        this.out = out;
    }

    void write(ModelInferResponse response) {
        if (response.getRawOutputContentsCount() != response.getOutputsCount()) {
            writeError(response.getId(), "the server sent typed contents; this program reads raw ones");
            return;
        }
        JsonObject outputs = new JsonObject();
        for (int index = 0; index < response.getOutputsCount(); index++) {
            ModelInferResponse.InferOutputTensor tensor = response.getOutputs(index);
            outputs.add(tensor.getName(), output(tensor, response.getRawOutputContents(index)));
        }
        JsonObject answer = new JsonObject();
        answer.addProperty("id", response.getId());
        answer.addProperty("model", response.getModelName());
        answer.addProperty("version", response.getModelVersion());
        answer.add("outputs", outputs);
        print(answer, false);
    }

    void writeError(String id, String message) {
        JsonObject answer = new JsonObject();
        answer.addProperty("id", id);
        answer.addProperty("error", message);
        print(answer, true);
    }

    private synchronized void print(JsonObject answer, boolean isError) {
        count++;
        failed += isError ? 1 : 0;
        out.println(gson.toJson(answer));
        if (out.checkError()) { // a PrintStream does not throw
            throw new UncheckedIOException("cannot write answers", new IOException());
        }
    }

    /** Tells whether all was well. */
    synchronized void check() throws IOException {
        if (failed > 0) {
            throw new IOException(failed + " of " + count + " rows failed");
        }
    }

    private static JsonObject output(ModelInferResponse.InferOutputTensor tensor, ByteString raw) {
        JsonArray shape = new JsonArray();
        tensor.getShapeList().forEach(shape::add);
        JsonObject output = new JsonObject();
        output.addProperty("datatype", tensor.getDatatype());
        output.add("shape", shape);
        JsonArray elements = elements(tensor.getDatatype(), raw);
        if (elements != null) {
            output.add("data", elements);
        } else {
            output.addProperty("base64", Base64.getEncoder().encodeToString(raw.toByteArray()));
        }
        return output;
    }

    /** Null for BYTES, FP16 and BF16, which are no numbers in Java. */
    private static JsonArray elements(String datatype, ByteString raw) {
        ByteBuffer from = raw.asReadOnlyByteBuffer().order(ByteOrder.LITTLE_ENDIAN);
        JsonArray elements = new JsonArray();
        while (from.hasRemaining()) {
            switch (datatype) {
                case "BOOL" -> elements.add(from.get() != 0);
                case "INT8" -> elements.add(from.get());
                case "INT16" -> elements.add(from.getShort());
                case "INT32" -> elements.add(from.getInt());
                case "INT64" -> elements.add(from.getLong());
                case "UINT8" -> elements.add(Byte.toUnsignedInt(from.get()));
                case "UINT16" -> elements.add(Short.toUnsignedInt(from.getShort()));
                case "UINT32" -> elements.add(Integer.toUnsignedLong(from.getInt()));
                case "UINT64" -> elements.add(new BigInteger(Long.toUnsignedString(from.getLong())));
                case "FP32" -> add(elements, from.getFloat());
                case "FP64" -> add(elements, from.getDouble());
                default -> {
                    return null;
                }
            }
        }
        return elements;
    }

    /** JSON has no NaN and no infinities: those become text. */
    private static void add(JsonArray elements, Number number) {
        if (Double.isFinite(number.doubleValue())) {
            elements.add(number);
        } else {
            elements.add(number.toString());
        }
    }
}
