"""A model for a real Triton's Python backend: it says the same to every prompt."""

import os
import sys

# The backend's interpreter knows no packages but its own.
sys.path.insert(0, os.environ["TRITON_MODEL_PACKAGES"])

import numpy  # pylint: disable=wrong-import-position
import triton_python_backend_utils as triton  # pylint: disable=wrong-import-position,import-error


class TritonPythonModel:
    """What the backend looks for."""

    def execute(self, requests):
        """An answer to each row of each request."""
        return [self.answer(request) for request in requests]

    def answer(self, request):
        """`text_output`, or the error that a number of tokens below one gets."""
        of = lambda name: triton.get_input_tensor_by_name(request, name).as_numpy()
        if of("max_tokens").min() < 1:
            return triton.InferenceResponse(error=triton.TritonError("too few"))
        said = numpy.array([[b"said"]] * of("text_input").shape[0], dtype=numpy.object_)
        return triton.InferenceResponse([triton.Tensor("text_output", said)])
