package tensorgate.client;

import com.google.gson.JsonParseException;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.Reader;
import tensorgate.inference.ModelInferRequest;

/** Turns lines of JSON into requests, whose ids are the lines' numbers. */
final class Rows {
    private final BufferedReader lines;
    private final Client client;
    private final Answers answers;
    private int number;

    /** A line that holds no tensor is answered here, the server never sees it. */
    Rows(Reader file, Client client, Answers answers) {
        lines = new BufferedReader(file);
        this.client = client;
        this.answers = answers;
    }

    /** The next line's request, null at the end. */
    ModelInferRequest next() throws IOException {
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            number++;
            if (line.isBlank()) {
                continue;
            }
            String id = Integer.toString(number);
            try {
                return client.request(id, Tensor.parse(line));
            } catch (JsonParseException failure) {
                answers.writeError(id, failure.getMessage());
            }
        }
        return null;
    }
}
