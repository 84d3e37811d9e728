package tensorgate.client;

import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonParseException;
import com.google.gson.JsonParser;
import com.google.protobuf.ByteString;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.List;

/** FP32 numbers in row-major order. */
final class Tensor {
    private final List<Long> shape = new ArrayList<>();
    private final List<Float> numbers = new ArrayList<>();

    private Tensor() {}

    /** Reads nested JSON arrays of numbers. */
    static Tensor parse(String text) {
        Tensor tensor = new Tensor();
        tensor.add(JsonParser.parseString(text), 0);
        return tensor;
    }

    /** Appends what was found at a depth of nesting. The first array at each depth sets its size. */
    private void add(JsonElement element, int depth) {
        if (element.isJsonPrimitive() && element.getAsJsonPrimitive().isNumber() && depth == shape.size()) {
            numbers.add(element.getAsFloat());
            return;
        }
        if (element.isJsonArray()) {
            JsonArray array = element.getAsJsonArray();
            if (depth == shape.size() && numbers.isEmpty()) {
                shape.add((long) array.size());
            }
            if (depth < shape.size() && array.size() == shape.get(depth)) {
                array.forEach(inner -> add(inner, depth + 1));
                return;
            }
        }
        throw new JsonParseException("not numbers in nested arrays of equal lengths");
    }

    List<Long> shape() {
        return shape;
    }

    /** The tensor as it travels. */
    ByteString raw() {
        ByteBuffer raw = ByteBuffer.allocate(Float.BYTES * numbers.size()).order(ByteOrder.LITTLE_ENDIAN);
        numbers.forEach(raw::putFloat);
        return ByteString.copyFrom(raw.flip());
    }
}
