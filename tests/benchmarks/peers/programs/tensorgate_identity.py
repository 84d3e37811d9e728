"""tensorgate's side of `identity`."""


class Model:
    """Gives back what it gets."""

    inline = True

    def execute(self, inputs):
        """The batch that the dynamic batcher put together."""
        return {"y": inputs["x"]}
